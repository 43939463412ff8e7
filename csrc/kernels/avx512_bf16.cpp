// Products of bfloat16 pairs by AVX-512-BF16's dot product: twice the rate of float.
#define CIRCLE_VECTOR_BYTES 64
#include "kernels/products/register_product.h"

namespace circle_kernels {

namespace {

void nothing() {}

void similarities(const BFloatOperand& rows, const BFloatOperand& columns, int64_t dim, int terms,
                  float* tile) {
  // Rows are read as scalars, which the columns' layout serves.
  similarity_tile<BFloatPair>(rows.columns, columns.columns, terms * padded_dim(dim) / 2, PANEL,
                              PANEL, false, tile);
}

void accumulate(const BFloatOperand& operand, const BFloatPair* weights, int terms,
                int64_t first_dim, int64_t last_dim, float* gradient) {
  // One term: accumulate_gradient knows panels one PANEL wide.
  (void)terms;
  accumulate_gradient<BFloatPair>(operand.gradient, weights, PANEL / 2, first_dim, last_dim, PANEL,
                                  nullptr, gradient);
}

}  // namespace

namespace avx512_bf16 {
extern const BFloatProducts products;
const BFloatProducts products{nothing, nothing, similarities, accumulate, false};
}  // namespace avx512_bf16

}  // namespace circle_kernels
