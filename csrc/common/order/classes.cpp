#include "common/order/classes.h"

#include <algorithm>
#include <limits>

#include "common/order/ranks.h"

namespace circle_kernels {

namespace {

// Sorts one side by rank, in time proportional to its size; new labels get the next ranks.
Ordering order_by_rank(const Embeddings& side, Ranks& ranks) {
  std::vector<int32_t> rank_of(side.count);
  for (int64_t position = 0; position < side.count; ++position) {
    rank_of[position] = ranks(side.labels[position * side.label_stride]);
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

bool has_consecutive_labels(const Embeddings& side) {
  if (side.count < 2 || side.count > std::numeric_limits<int32_t>::max()) return false;
  for (int64_t position = 1; position < side.count; ++position) {
    const auto before = static_cast<uint64_t>(side.labels[(position - 1) * side.label_stride]);
    const auto label = static_cast<uint64_t>(side.labels[position * side.label_stride]);
    if (label - before != 1) return false;
  }
  return true;
}

// Columns with consecutive labels keep their places, which are their class ids.
Classes order_by_label(const Embeddings& rows, const Embeddings& columns) {
  Classes classes;
  const auto last = static_cast<int32_t>(columns.count);
  classes.columns.class_ids.assign(panels_of(columns.count) * PANEL, NO_CLASS);
  for (int32_t id = 0; id < last; ++id) classes.columns.class_ids[id] = id;

  std::vector<int32_t> id_of(rows.count);
  for (int64_t position = 0; position < rows.count; ++position) {
    const auto label = static_cast<uint64_t>(rows.labels[position * rows.label_stride]);
    const uint64_t id = label - static_cast<uint64_t>(columns.labels[0]);
    id_of[position] = id < static_cast<uint64_t>(last) ? static_cast<int32_t>(id) : last;
  }
  Ordering& ordering = classes.rows;
  ordering.order.resize(rows.count);
  for (int64_t position = 0; position < rows.count; ++position) ordering.order[position] = position;
  std::stable_sort(ordering.order.begin(), ordering.order.end(),
                   [&](int64_t a, int64_t b) { return id_of[a] < id_of[b]; });
  ordering.class_ids.assign(panels_of(rows.count) * PANEL, NO_CLASS);
  for (int64_t sorted = 0; sorted < rows.count; ++sorted) {
    ordering.class_ids[sorted] = id_of[ordering.order[sorted]];
  }
  return classes;
}

}  // namespace

Classes order_by_class(const Problem& problem) {
  if (!problem.self_mode && has_consecutive_labels(problem.columns)) {
    return order_by_label(problem.rows, problem.columns);
  }
  Ranks ranks(problem.rows.count + (problem.self_mode ? 0 : problem.columns.count));
  Classes classes;
  classes.rows = order_by_rank(problem.rows, ranks);
  if (!problem.self_mode) classes.columns = order_by_rank(problem.columns, ranks);
  return classes;
}

}  // namespace circle_kernels
