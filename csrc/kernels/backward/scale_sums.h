// What a tile gives to the gradients of both scales: dL/dz z, with an exponential for each that
// counts a pair.
#pragma once

#include "kernels/backward/statistics.h"
#include "kernels/backward/weighted_gradient.h"
#include "kernels/vectors/exp2.h"

namespace circle_kernels {
namespace {

// Of each kind of pair the sum over all that count pairs of upstream sum_j softmax_j z_j; in a unit
// of the backward pass.
struct ScaleSums {
  double positive, negative;
};

// Logits are copied, as in sum_tile.
template <class T, Pairs pairs, bool columns_too, class Logits>
ScaleSums scale_sums(const Tile<T>& tile, const T* similarities, Logits logits,
                     const Statistics<T>& statistics) {
  const RowStatistics<T>&positive = statistics.rows.positive, &negative = statistics.rows.negative;
  [[maybe_unused]] const SideStatistics<T>& of_columns = statistics.columns;
  ScaleSums sums{0, 0};
  for (int64_t row = 0; row < tile.live_rows(); ++row) {
    const int64_t i = tile.row * PANEL + row;
    Vec<T> row_positive{}, row_negative{};
    for (int64_t column = 0; column < PANEL; column += LANES<T>) {
      const int64_t at = row * PANEL + column, j = tile.column * PANEL + column;
      const Vec<T> similarity = load(similarities + at);
      const auto kinds = PairKinds<T, pairs>::of(tile, row, column);
      const Vec<T> logit = kinds.choose([&] { return logits.positive(similarity, at); },
                                        [&] { return logits.negative(similarity, at); });
      // A logit may be as large as its weight is small.
      const auto term = [&](Vec<T> lse, Vec<T> upstream) {
        const Vec<T> distance = logit - lse;
        const Vec<Int<T>> none = (upstream == 0) | (distance < Exp2<T>::LOWEST);
        return select<T>(none, Vec<T>{}, exp2<T>(distance) * upstream * logit);
      };
      Vec<T> terms =
          kinds.for_row(term(kinds.choose_number(positive.lse + i, negative.lse + i),
                             kinds.choose_number(positive.gradient + i, negative.gradient + i)));
      if constexpr (columns_too) {
        terms += kinds.for_column(
            term(kinds.choose_vector(of_columns.positive.lse + j, of_columns.negative.lse + j),
                 kinds.choose_vector(of_columns.positive.gradient + j,
                                     of_columns.negative.gradient + j)));
      }
      row_positive += select<T>(kinds.masks.positive, terms, Vec<T>{});
      row_negative += select<T>(kinds.masks.negative, terms, Vec<T>{});
    }
    sums.positive += sum<T>(row_positive);
    sums.negative += sum<T>(row_negative);
  }
  return sums;
}

}  // namespace
}  // namespace circle_kernels
