// Products of bfloat16 pairs by AMX: 16 x 16 sums from 16 x 32 by 32 x 16 numbers at a time.
#include "common/bfloat_products.h"
#include "kernels/products/amx_instructions.h"

namespace circle_kernels {

namespace {

// Numbers in a tile's row of sums, and pairs in a tile's row of operands.
constexpr int64_t EDGE = 16;
static_assert(PANEL % (2 * EDGE) == 0 && BFLOAT_DEPTH == 2 * EDGE);

// A block of 32 x 32 sums, in tiles 0 to 3: c [+]= a b over `depth` pairs. Strides count words.
void multiply_block(const BFloatPair* a, int64_t a_stride, const BFloatPair* b, int64_t b_stride,
                    int64_t depth, bool accumulate, float* c) {
  constexpr int64_t C_BYTES = PANEL * sizeof(float);
  const int64_t a_bytes = a_stride * static_cast<int64_t>(sizeof(BFloatPair));
  const int64_t b_bytes = b_stride * static_cast<int64_t>(sizeof(BFloatPair));
  float* lower = c + EDGE * PANEL;
  if (accumulate) {
    CIRCLE_LOAD_TILE(0, c, C_BYTES);
    CIRCLE_LOAD_TILE(1, c + EDGE, C_BYTES);
    CIRCLE_LOAD_TILE(2, lower, C_BYTES);
    CIRCLE_LOAD_TILE(3, lower + EDGE, C_BYTES);
  } else {
    CIRCLE_CLEAR_TILE(0);
    CIRCLE_CLEAR_TILE(1);
    CIRCLE_CLEAR_TILE(2);
    CIRCLE_CLEAR_TILE(3);
  }
  for (int64_t k = 0; k < depth; k += EDGE) {
    CIRCLE_LOAD_TILE(4, a + k, a_bytes);
    CIRCLE_LOAD_TILE(6, b + k * b_stride, b_bytes);
    CIRCLE_LOAD_TILE(7, b + k * b_stride + EDGE, b_bytes);
    CIRCLE_MULTIPLY_TILES(0, 4, 6);
    CIRCLE_MULTIPLY_TILES(1, 4, 7);
    CIRCLE_LOAD_TILE(5, a + EDGE * a_stride + k, a_bytes);
    CIRCLE_MULTIPLY_TILES(2, 5, 6);
    CIRCLE_MULTIPLY_TILES(3, 5, 7);
  }
  CIRCLE_STORE_TILE(0, c, C_BYTES);
  CIRCLE_STORE_TILE(1, c + EDGE, C_BYTES);
  CIRCLE_STORE_TILE(2, lower, C_BYTES);
  CIRCLE_STORE_TILE(3, lower + EDGE, C_BYTES);
}

void similarities(const BFloatOperand& rows, const BFloatOperand& columns, int64_t dim, int terms,
                  float* tile) {
  const int64_t depth = terms * padded_dim(dim) / 2;
  for (int64_t row = 0; row < PANEL; row += 2 * EDGE) {
    for (int64_t column = 0; column < PANEL; column += 2 * EDGE) {
      multiply_block(rows.rows + row * depth, depth, columns.columns + column, PANEL, depth, false,
                     tile + row * PANEL + column);
    }
  }
}

void accumulate(const BFloatOperand& operand, const BFloatPair* weights, int terms,
                int64_t first_dim, int64_t last_dim, float* gradient) {
  const int64_t depth = terms * PANEL / 2;
  for (int64_t d = first_dim; d < last_dim; d += 2 * EDGE) {
    for (int64_t column = 0; column < PANEL; column += 2 * EDGE) {
      multiply_block(operand.gradient + d * depth, depth, weights + column, PANEL, depth, true,
                     gradient + d * PANEL + column);
    }
  }
}

}  // namespace

namespace amx {
extern const BFloatProducts products;
const BFloatProducts products{configure_tiles, release_tiles, similarities, accumulate, true};
}  // namespace amx

}  // namespace circle_kernels
