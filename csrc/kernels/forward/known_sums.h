// What the forward pass leaves where log-sum-exps are known already.
#pragma once

#include "kernels/tiles/saved.h"

namespace circle_kernels {
namespace {

// No tiles, and nothing that would let the backward pass leave any out. `nats` is nats_per_logit().
template <class T>
void save_known(const Problem& problem, const Classes& classes, const Nats& nats,
                const KnownSums& sums) {
  const Saved<T> saved(problem, static_cast<T*>(sums.saved));
  const auto *lse_pos = static_cast<const T*>(sums.lse_pos),
             *lse_neg = static_cast<const T*>(sums.lse_neg);
  const auto take = [&](const Ordering& ordering, int64_t count, int64_t first,
                        const LogSumExps<T>& side) {
    const int64_t* order = ordering.order.empty() ? nullptr : ordering.order.data();
    take_logsumexps(lse_pos + first, count, order, nats.positive, side.positive);
    take_logsumexps(lse_neg + first, count, order, nats.negative, side.negative);
  };
  const int64_t count = problem.rows.count;
  take(classes.rows, count, 0, saved.rows);
  if (problem.both_sides) take(classes.columns, problem.columns.count, count, saved.columns);
  if (saved.highest == nullptr) return;
  const int64_t tiles = tiles_of(count, problem.columns.count, problem.self_mode);
  for (int64_t index = 0; index < tiles; ++index) saved.highest[index] = INFINITE<T>;
}

}  // namespace
}  // namespace circle_kernels
