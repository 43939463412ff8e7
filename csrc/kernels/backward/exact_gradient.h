// The gradient of a tile with an exponential for each row and, where columns count pairs, too, one
// for each column of a pair: exact whatever the range of its logits.
#pragma once

#include "kernels/backward/statistics.h"
#include "kernels/backward/weighted_gradient.h"
#include "kernels/vectors/exp2.h"
#include "kernels/vectors/fused.h"

namespace circle_kernels {
namespace {

// G of one tile, with `columns_too` G + G^T. Logits are copied, as in sum_tile.
template <class T, Pairs pairs, bool columns_too, bool skipping, class Logits>
void exact_gradient(const Tile<T>& tile, const T* similarities, Logits logits,
                    const Statistics<T>& statistics, T negligible, T* gradient, TileShare& share) {
  const RowStatistics<T>&positive = statistics.rows.positive, &negative = statistics.rows.negative;
  [[maybe_unused]] const SideStatistics<T>& of_columns = statistics.columns;
  const auto weigh = [&](int64_t row, int64_t column, Vec<T> similarity, const auto& kinds) {
    const int64_t at = row * PANEL + column;
    const Vec<T> logit = kinds.choose([&] { return logits.positive(similarity, at); },
                                      [&] { return logits.negative(similarity, at); });
    // Without a gradient 0, whatever the log-sum-exp is.
    const auto share_of = [&](Vec<T> lse, Vec<T> upstream) {
      return select<T>(upstream == 0, Vec<T>{}, exp2<T>(logit - lse));
    };
    const int64_t i = tile.row * PANEL + row, j = tile.column * PANEL + column;
    const Vec<T> row_gradient = kinds.choose_number(positive.gradient + i, negative.gradient + i);
    const Vec<T> row_lse = kinds.choose_number(positive.lse + i, negative.lse + i);
    const Vec<T> row_share = kinds.for_row(share_of(row_lse, row_gradient));
    PairWeights<T> weights{row_share * row_gradient, row_share};
    if constexpr (columns_too) {
      const Vec<T> column_gradient =
          kinds.choose_vector(of_columns.positive.gradient + j, of_columns.negative.gradient + j);
      const Vec<T> column_lse =
          kinds.choose_vector(of_columns.positive.lse + j, of_columns.negative.lse + j);
      const Vec<T> column_share = kinds.for_column(share_of(column_lse, column_gradient));
      weights.weight = fused(column_share, column_gradient, weights.weight);
      weights.share = at_least(column_share, weights.share);
    }
    return weights;
  };
  fill_gradient<T, pairs, skipping>(tile, similarities, logits, negligible, gradient, share, weigh);
}

}  // namespace
}  // namespace circle_kernels
