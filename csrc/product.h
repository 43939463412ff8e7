// The register-tiled product that both passes are made of.
#pragma once

#include "problem.h"
#include "simd.h"

namespace circle_kernels {
namespace {

// Rows and vectors of the register tile: as many sums as leave registers for their operands.
#if CIRCLE_VECTOR_BYTES == 64 || defined(__aarch64__)
constexpr int TILE_ROWS = 8, TILE_VECTORS = 3;
#else
constexpr int TILE_ROWS = 6, TILE_VECTORS = 2;
#endif

template <class T>
constexpr int TILE_COLUMNS = TILE_VECTORS * LANES<T>;

static_assert(PANEL % TILE_ROWS == 0 && PANEL % TILE_COLUMNS<float> == 0 &&
              PANEL % TILE_COLUMNS<double> == 0);

// c(r, v) [+]= sum_k a(r, k) b(k, v)   for `rows` rows and TILE_COLUMNS columns
//
// a(r, k) lies at a[r * row_stride + k * depth_stride], or with `indices` at
// a[r * row_stride + indices[k]]; b and c have rows of PANEL.
template <class T, int rows, int row_stride, int depth_stride, bool indexed>
CIRCLE_INLINE void multiply_registers(const T* a, const int32_t* indices, const T* b, int64_t depth,
                                      T* c, bool accumulate) {
  Vec<T> sums[rows][TILE_VECTORS];
  CIRCLE_UNROLL
  for (int row = 0; row < rows; ++row) {
    CIRCLE_UNROLL
    for (int vector = 0; vector < TILE_VECTORS; ++vector) {
      sums[row][vector] = accumulate ? load(c + row * PANEL + vector * LANES<T>) : Vec<T>{};
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    const T* scalars = a + (indexed ? int64_t{indices[k]} : k * depth_stride);
    Vec<T> vectors[TILE_VECTORS];
    CIRCLE_UNROLL
    for (int vector = 0; vector < TILE_VECTORS; ++vector) {
      vectors[vector] = load(b + k * PANEL + vector * LANES<T>);
    }
    CIRCLE_UNROLL
    for (int row = 0; row < rows; ++row) {
      const Vec<T> scalar = splat(scalars[row * row_stride]);
      CIRCLE_UNROLL
      for (int vector = 0; vector < TILE_VECTORS; ++vector) {
        sums[row][vector] += scalar * vectors[vector];
      }
    }
  }
  CIRCLE_UNROLL
  for (int row = 0; row < rows; ++row) {
    CIRCLE_UNROLL
    for (int vector = 0; vector < TILE_VECTORS; ++vector) {
      store(c + row * PANEL + vector * LANES<T>, sums[row][vector]);
    }
  }
}

// tile(i, j) = sum_d rows[d][i] columns[d][j]; 0 for padding.
template <class T>
void similarity_tile(const T* rows,     // (dim, PANEL)
                     const T* columns,  // (dim, PANEL)
                     int64_t dim, int64_t live_rows, int64_t live_columns,
                     T* tile) {  // (PANEL, PANEL)
  // A strip of the columns' panel this deep stays in the first- or second-level cache while all
  // rows pass.
  constexpr int64_t DEPTH = 512;
  if (live_rows < PANEL || live_columns < PANEL) std::memset(tile, 0, PANEL * PANEL * sizeof(T));
  for (int64_t begin = 0; begin < dim; begin += DEPTH) {
    const int64_t depth = dim - begin < DEPTH ? dim - begin : DEPTH;
    for (int64_t column = 0; column < live_columns; column += TILE_COLUMNS<T>) {
      for (int64_t row = 0; row < live_rows; row += TILE_ROWS) {
        multiply_registers<T, TILE_ROWS, 1, PANEL, false>(rows + begin * PANEL + row, nullptr,
                                                          columns + begin * PANEL + column, depth,
                                                          tile + row * PANEL + column, begin > 0);
      }
    }
  }
}

template <class T, bool indexed>
CIRCLE_INLINE void accumulate_columns(const T* panel, const int32_t* indices, const T* weights,
                                      int64_t depth, int64_t first_dim, int64_t last_dim,
                                      T* gradient) {
  int64_t d = first_dim;
  for (; d + TILE_ROWS <= last_dim; d += TILE_ROWS) {
    multiply_registers<T, TILE_ROWS, PANEL, 1, indexed>(panel + d * PANEL, indices, weights, depth,
                                                        gradient + d * PANEL, true);
  }
  for (; d + 2 <= last_dim; d += 2) {
    multiply_registers<T, 2, PANEL, 1, indexed>(panel + d * PANEL, indices, weights, depth,
                                                gradient + d * PANEL, true);
  }
  for (; d < last_dim; ++d) {
    multiply_registers<T, 1, PANEL, 1, indexed>(panel + d * PANEL, indices, weights, depth,
                                                gradient + d * PANEL, true);
  }
}

// gradient(d, i) += sum_k panel(d, k) weights(k, i)   for d in [first_dim, last_dim)
template <class T>
void accumulate_gradient(const T* panel,    // (dim, PANEL)
                         const T* weights,  // (depth, PANEL)
                         int64_t depth, int64_t first_dim, int64_t last_dim, int64_t live_columns,
                         T* gradient) {  // (dim, PANEL)
  for (int64_t column = 0; column < live_columns; column += TILE_COLUMNS<T>) {
    accumulate_columns<T, false>(panel, nullptr, weights + column, depth, first_dim, last_dim,
                                 gradient + column);
  }
}

// The same over chosen rows of the panel only: gradient(d, i) += sum_k panel(d, indices[k]) ...
template <class T>
void accumulate_gradient_of(const T* panel, const int32_t* indices, const T* weights, int64_t depth,
                            int64_t first_dim, int64_t last_dim, int64_t live_columns,
                            T* gradient) {
  for (int64_t column = 0; column < live_columns; column += TILE_COLUMNS<T>) {
    accumulate_columns<T, true>(panel, indices, weights + column, depth, first_dim, last_dim,
                                gradient + column);
  }
}

}  // namespace
}  // namespace circle_kernels
