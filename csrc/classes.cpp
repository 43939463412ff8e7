#include "classes.h"

#include <unordered_map>

namespace circle_kernels {

namespace {

// Ranks of labels by first appearance.
using Ranks = std::unordered_map<int64_t, int32_t>;

// Sorts one side by rank, in time proportional to its size; new labels get the next ranks.
Ordering order_by_rank(const Embeddings& side, Ranks& ranks) {
  std::vector<int32_t> rank_of(side.count);
  for (int64_t position = 0; position < side.count; ++position) {
    const auto next = static_cast<int32_t>(ranks.size());
    rank_of[position] =
        ranks.try_emplace(side.labels[position * side.label_stride], next).first->second;
  }
  std::vector<int64_t> place(ranks.size() + 1, 0);  // where each rank's next member goes
  for (const int32_t rank : rank_of) ++place[rank + 1];
  for (std::size_t rank = 1; rank < place.size(); ++rank) place[rank] += place[rank - 1];

  Ordering ordering;
  ordering.order.resize(side.count);
  ordering.class_ids.assign(panels_of(side.count) * PANEL, NO_CLASS);
  for (int64_t position = 0; position < side.count; ++position) {
    const int64_t sorted = place[rank_of[position]]++;
    ordering.order[sorted] = position;
    ordering.class_ids[sorted] = rank_of[position];
  }
  return ordering;
}

}  // namespace

Classes order_by_class(const Problem& problem) {
  Ranks ranks;
  Classes classes;
  classes.rows = order_by_rank(problem.rows, ranks);
  if (!problem.self_mode) classes.columns = order_by_rank(problem.columns, ranks);
  return classes;
}

}  // namespace circle_kernels
