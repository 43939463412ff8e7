// The product of one tile of G = dL/ds with one panel.
#pragma once

#include "kernels/products/register_product.h"
#include "kernels/vectors/transpose.h"

namespace circle_kernels {
namespace {

// Which rows and columns of a tile of G hold a weight worth a product. With skip_below = 0 all do.
struct TileShare {
  bool any;
  bool all;
  uint8_t rows[PANEL], columns[PANEL];
};

// The values of d that one task computes, [first, last).
struct DimRange {
  int64_t first, last;
};

// weights(j, i) = tile(i, j)
template <class T>
void transpose_tile(const T* tile, T* weights) {
  for (int64_t row = 0; row < PANEL; row += LANES<T>) {
    for (int64_t column = 0; column < PANEL; column += LANES<T>) {
      transpose_block(tile + row * PANEL + column, PANEL, weights + column * PANEL + row, PANEL);
    }
  }
}

// Adds what one tile of G has for one panel of the gradient, for a range of d.
//
// The tile's columns are the other side's embeddings when the panel is one of its rows, and the
// other way round; `transposed` says which.
template <class T>
void accumulate_tile(const T* other_panel, const T* tile, const TileShare& share, bool transposed,
                     int64_t live_others, int64_t live_outputs, const DimRange& range, T* scratch,
                     const T* upcoming, T* gradient) {
  const uint8_t* wanted = transposed ? share.columns : share.rows;
  int32_t indices[PANEL];
  int64_t depth = 0;
  if (!share.all) {
    for (int64_t k = 0; k < live_others; ++k) {
      if (wanted[k]) indices[depth++] = static_cast<int32_t>(k);
    }
    if (depth == 0) return;
  }
  const T* weights = tile;
  if (transposed) {
    transpose_tile(tile, scratch);
    weights = scratch;
  }
  // Gathering a line costs less than multiplying with it; taking all as they are costs nothing.
  if (share.all || depth > PANEL * 3 / 4) {
    accumulate_gradient(other_panel, weights, live_others, range.first, range.last, live_outputs,
                        upcoming, gradient);
    return;
  }
  for (int64_t k = 0; k < depth; ++k) {
    std::memmove(scratch + k * PANEL, weights + indices[k] * PANEL, PANEL * sizeof(T));
  }
  accumulate_gradient_of(other_panel, indices, scratch, depth, range.first, range.last,
                         live_outputs, gradient);
}

}  // namespace
}  // namespace circle_kernels
