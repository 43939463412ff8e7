// The gradient of a tile from the weights that the forward pass has kept.
#pragma once

#include <type_traits>

#include "kernels/backward/factors.h"
#include "kernels/tiles/saved.h"
#include "kernels/vectors/transpose.h"

namespace circle_kernels {
namespace {

// So many numbers as whole vectors hold them.
template <class T>
int64_t whole_vectors(int64_t count) {
  return (count + LANES<T> - 1) / LANES<T> * LANES<T>;
}

// Products may take a tile as a whole.
template <class T>
void clear_padding(int64_t rows, int64_t columns, T* tile) {
  for (int64_t row = 0; row < rows && columns < PANEL; ++row) {
    std::memset(tile + row * PANEL + columns, 0, (PANEL - columns) * sizeof(T));
  }
  std::memset(tile + rows * PANEL, 0, (PANEL - rows) * PANEL * sizeof(T));
}

// G of one tile, with `columns_too` G + G^T, from the weights that the forward pass kept;
// transposed if that is how it will be multiplied.
template <class T, Pairs pairs, bool columns_too, bool transposed>
void scale_weights(const Tile<T>& tile, const T* weights, const Statistics<T>& statistics,
                   const TileShifts<T>& shifts, T* gradient) {
  constexpr bool mixed = pairs != Pairs::negative;
  const TileFactors<T, pairs, columns_too> factors(tile, statistics, shifts);
  const int64_t rows = whole_vectors<T>(tile.live_rows());
  const int64_t columns = whole_vectors<T>(tile.live_columns());
  for (int64_t first_row = 0; first_row < rows; first_row += LANES<T>) {
    for (int64_t column = 0; column < columns; column += LANES<T>) {
      Vec<T> block[LANES<T>];
      CIRCLE_UNROLL
      for (int lane = 0; lane < LANES<T>; ++lane) {
        const int64_t row = first_row + lane;
        Vec<T> factor = splat(factors.row_negative.gradient[row]);
        const Vec<T> weight = load(weights + row * PANEL + column);
        __builtin_prefetch(weights + (row + LANES<T>)*PANEL + column);
        if constexpr (pairs == Pairs::listed) {
          const PairMasks<T> masks = pair_masks<T, pairs>(tile, row, column);
          const auto of_side = [&](Vec<Int<T>> positive, Vec<T> factor_positive,
                                   Vec<Int<T>> negative, Vec<T> factor_negative) {
            return select<T>(positive, factor_positive,
                             select<T>(negative, factor_negative, Vec<T>{}));
          };
          factor = of_side(masks.row_positive, splat(factors.row_positive.gradient[row]),
                           masks.row_negative, factor);
          if constexpr (columns_too) {
            factor +=
                of_side(masks.column_positive, load(factors.column_positive.gradient + column),
                        masks.column_negative, load(factors.column_negative.gradient + column));
          }
          block[lane] = weight * factor;
          continue;
        }
        if constexpr (columns_too) factor += load(factors.column_negative.gradient + column);
        if constexpr (!mixed) {
          block[lane] = weight * factor;
          continue;
        }
        Vec<T> factor_positive = splat(factors.row_positive.gradient[row]);
        if constexpr (columns_too) {
          factor_positive += load(factors.column_positive.gradient + column);
        }
        const PairMasks<T> masks = pair_masks<T, pairs>(tile, row, column);
        block[lane] =
            select<T>(masks.positive | masks.negative,
                      weight * select<T>(masks.positive, factor_positive, factor), Vec<T>{});
      }
      if constexpr (transposed) exchange_all<T, 1>(block);
      T* to = transposed ? gradient + column * PANEL + first_row
                         : gradient + first_row * PANEL + column;
      CIRCLE_UNROLL
      for (int lane = 0; lane < LANES<T>; ++lane) store(to + lane * PANEL, block[lane]);
    }
  }
  transposed ? clear_padding(columns, rows, gradient) : clear_padding(rows, columns, gradient);
}

// Chooses the body that a tile needs.
template <class T>
void scale_weights(const Tile<T>& tile, const T* weights, const Statistics<T>& statistics,
                   const TileShifts<T>& shifts, bool transposed, T* gradient) {
  const auto choose = [&](auto pairs, auto columns_too) {
    constexpr Pairs P = decltype(pairs)::value;
    constexpr bool C = decltype(columns_too)::value;
    transposed ? scale_weights<T, P, C, true>(tile, weights, statistics, shifts, gradient)
               : scale_weights<T, P, C, false>(tile, weights, statistics, shifts, gradient);
  };
  with_pairs(tile, [&](auto pairs) {
    statistics.columns_too ? choose(pairs, std::true_type()) : choose(pairs, std::false_type());
  });
}

}  // namespace
}  // namespace circle_kernels
