// The gradient of a tile with one exponential per pair, which serves its row and its column.
#pragma once

#include "kernels/backward/factors.h"
#include "kernels/backward/weighted_gradient.h"

namespace circle_kernels {
namespace {

// The shift with which one exponential serves every row of a tile, and every column that counts:
// exponentials and factors stay inside the exponent's range, and what falls out of it is no more
// than 2^-56 of a row's weight.
template <class T>
struct SharedShift {
  T shift;
  bool possible;
};

template <class T>
SharedShift<T> shared_shift(T highest, T lowest_lse) {
  constexpr T ROOM = Exp2<T>::HIGHEST / 2;
  const T distance = highest - lowest_lse;
  // No row has a gradient (the distance is -inf): any shift will do.
  if (distance <= ROOM) return {highest, true};
  if (distance <= 2 * ROOM) return {highest - ROOM, true};
  return {0, false};
}

// G of one tile, with `columns_too` G + G^T. Logits are copied, as in sum_tile.
template <class T, Pairs pairs, bool columns_too, bool skipping, class Logits>
void shared_gradient(const Tile<T>& tile, const T* similarities, Logits logits,
                     const Statistics<T>& statistics, TileShifts<T> shifts, T negligible,
                     T* gradient, TileShare& share) {
  const TileFactors<T, pairs, columns_too> factors(tile, statistics, shifts);
  const auto weigh = [&](int64_t row, int64_t column, Vec<T> similarity, const auto& kinds) {
    const int64_t at = row * PANEL + column;
    const Vec<T> exponential =
        exp2<T>(kinds.choose([&] { return logits.positive(similarity, at) - shifts.positive; },
                             [&] { return logits.negative(similarity, at) - shifts.negative; }));
    const auto of_row = [&](const T* positive, const T* negative) {
      return kinds.choose_number(positive + row, negative + row);
    };
    const auto of_column = [&](const T* positive, const T* negative) {
      return kinds.choose_vector(positive + column, negative + column);
    };
    Vec<T> factor =
        kinds.for_row(of_row(factors.row_positive.gradient, factors.row_negative.gradient));
    Vec<T> largest_share = of_row(factors.row_positive.share, factors.row_negative.share);
    if constexpr (columns_too) {
      factor += kinds.for_column(
          of_column(factors.column_positive.gradient, factors.column_negative.gradient));
      largest_share = at_least(
          of_column(factors.column_positive.share, factors.column_negative.share), largest_share);
    }
    return PairWeights<T>{exponential * factor, exponential * largest_share};
  };
  fill_gradient<T, pairs, skipping>(tile, similarities, logits, negligible, gradient, share, weigh);
}

}  // namespace
}  // namespace circle_kernels
