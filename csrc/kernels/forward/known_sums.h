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
  const int64_t count = problem.rows.count;
  const int64_t* order = classes.rows.order.empty() ? nullptr : classes.rows.order.data();
  take_logsumexps(static_cast<const T*>(sums.lse_pos), count, order, nats.positive, saved.lse_pos);
  take_logsumexps(static_cast<const T*>(sums.lse_neg), count, order, nats.negative, saved.lse_neg);
  if (saved.highest == nullptr) return;
  const int64_t tiles = tiles_of(count, problem.columns.count, problem.self_mode);
  for (int64_t index = 0; index < tiles; ++index) saved.highest[index] = INFINITE<T>;
}

}  // namespace
}  // namespace circle_kernels
