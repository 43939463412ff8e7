// classes.h against its definition, computed the slow way.
#include <algorithm>
#include <limits>
#include <random>

#include "common/order/classes.h"
#include "common/order/ranks.h"
#include "tests/support/check.h"

namespace circle_kernels {
namespace {

using Labels = std::vector<int64_t>;

Embeddings side_of(const Labels& memory, int64_t count, int64_t stride) {
  return {nullptr, count, 1, 1, 1, memory.data(), stride};
}

Classes order(const Embeddings& rows, const Embeddings* columns) {
  Problem problem{};
  problem.rows = rows;
  problem.columns = columns != nullptr ? *columns : rows;
  problem.self_mode = columns == nullptr;
  return order_by_class(problem);
}

// `seen` holds labels in the order of their first appearance.
void check_side(const Embeddings& side, const Ordering& ordering, Labels& seen) {
  Labels ranks(side.count);
  for (int64_t position = 0; position < side.count; ++position) {
    const int64_t label = side.labels[position * side.label_stride];
    const auto found = std::find(seen.begin(), seen.end(), label);
    ranks[position] = found - seen.begin();
    if (found == seen.end()) seen.push_back(label);
  }
  Labels expected(side.count);
  for (int64_t position = 0; position < side.count; ++position) expected[position] = position;
  std::stable_sort(expected.begin(), expected.end(),
                   [&](int64_t a, int64_t b) { return ranks[a] < ranks[b]; });

  CHECK(ordering.order == expected);
  const auto padded = static_cast<std::size_t>(panels_of(side.count) * PANEL);
  if (!CHECK(ordering.class_ids.size() == padded)) return;
  for (int64_t sorted = 0; sorted < static_cast<int64_t>(padded); ++sorted) {
    const int64_t wanted = sorted < side.count ? ranks[expected[sorted]] : NO_CLASS;
    CHECK_WITH(ordering.class_ids[sorted] == wanted, "at %lld", static_cast<long long>(sorted));
  }
}

void check_self(const Labels& memory, int64_t count, int64_t stride) {
  const Embeddings rows = side_of(memory, count, stride);
  const Classes classes = order(rows, nullptr);
  Labels seen;
  check_side(rows, classes.rows, seen);
  CHECK(classes.columns.order.empty());
  CHECK(classes.columns.class_ids.empty());
}

void check_self(const Labels& labels) {
  check_self(labels, static_cast<int64_t>(labels.size()), 1);
}

void check_both(const Labels& row_labels, const Labels& column_labels) {
  const Embeddings rows = side_of(row_labels, static_cast<int64_t>(row_labels.size()), 1);
  const Embeddings columns = side_of(column_labels, static_cast<int64_t>(column_labels.size()), 1);
  const Classes classes = order(rows, &columns);
  Labels seen;  // shared: equal labels have equal ids on both sides
  check_side(rows, classes.rows, seen);
  check_side(columns, classes.columns, seen);
}

// Columns with the labels first, first + 1, ...: nothing is moved, ids are places.
void check_consecutive(const Labels& row_labels, int64_t first, int64_t count) {
  Labels column_labels(count);
  for (int64_t j = 0; j < count; ++j) {
    column_labels[j] = static_cast<int64_t>(static_cast<uint64_t>(first) + j);
  }
  const Embeddings rows = side_of(row_labels, static_cast<int64_t>(row_labels.size()), 1);
  const Embeddings columns = side_of(column_labels, count, 1);
  const Classes classes = order(rows, &columns);
  CHECK(classes.columns.order.empty());
  for (int64_t place = 0; place < panels_of(count) * PANEL; ++place) {
    CHECK(classes.columns.class_ids[place] == (place < count ? place : NO_CLASS));
  }
  const std::vector<int64_t>& sorted = classes.rows.order;
  if (!CHECK(sorted.size() == row_labels.size())) return;
  int32_t before = 0;
  for (std::size_t row = 0; row < sorted.size(); ++row) {
    const auto found =
        std::find(column_labels.begin(), column_labels.end(), row_labels[sorted[row]]);
    const int32_t id = classes.rows.class_ids[row];
    CHECK(id == found - column_labels.begin());  // `count` for a row without a column
    CHECK(id > before || (id == before && (row == 0 || sorted[row - 1] < sorted[row])));
    before = id;
  }
  for (std::size_t row = sorted.size(); row < classes.rows.class_ids.size(); ++row) {
    CHECK(classes.rows.class_ids[row] == NO_CLASS);
  }
}

Labels random_labels(std::mt19937_64& engine, int64_t count, int64_t classes) {
  Labels labels(count);
  for (int64_t& label : labels) {
    // Spread over all of int64, so that neither hashing nor sorting is an accident.
    label = static_cast<int64_t>((engine() % classes) * 0x9e3779b97f4a7c15u);
  }
  return labels;
}

void test_small_cases() {
  check_self({7});
  check_self({3, 1, 3, 2, 1, 3});
  check_self({5, 5, 5, 5});
  check_self({4, 3, 2, 1, 0});
  check_both({3, 1, 2}, {2, 2, 9, 1, 3, 9});
  check_both({1}, {2, 3, 2});
  check_both({8, 8, 8}, {8});
}

void test_extreme_labels() {
  constexpr int64_t LOW = std::numeric_limits<int64_t>::min();
  constexpr int64_t HIGH = std::numeric_limits<int64_t>::max();
  // NO_CLASS is an id of the kernel's; as a label it is one like any other.
  const Labels labels{HIGH, LOW, NO_CLASS, 0, LOW, HIGH, LOW + 1, HIGH - 1, NO_CLASS};
  check_self(labels);
  check_both(labels, {LOW + 1, NO_CLASS, LOW, 17, HIGH});
}

void test_consecutive_columns() {
  constexpr int64_t LOW = std::numeric_limits<int64_t>::min();
  constexpr int64_t HIGH = std::numeric_limits<int64_t>::max();
  check_consecutive({3, 1, 3, 0, -1, 9, LOW, HIGH, 2, 1}, 0, 5);
  check_consecutive({3, 1, 3, 0, -1, 9, LOW, HIGH, 2, 1}, -2, 3 * PANEL);
  check_consecutive({HIGH, LOW, HIGH - 1, 0}, HIGH - 1, 2);
}

void test_strides() {
  std::mt19937_64 engine(2);
  constexpr int64_t COUNT = 101;
  for (const int64_t stride : {0, 1, 2, 7}) {
    check_self(random_labels(engine, (COUNT - 1) * stride + 1, 9), COUNT, stride);
  }
}

void test_sizes_around_a_panel() {
  std::mt19937_64 engine(3);
  for (const int64_t count : {PANEL - 1, PANEL, PANEL + 1, 2 * PANEL, 2 * PANEL + 1}) {
    check_self(random_labels(engine, count, 1));
    check_self(random_labels(engine, count, 10));
    check_self(random_labels(engine, count, 1 << 20));
    check_both(random_labels(engine, count, 10), random_labels(engine, PANEL - count % 7, 20));
  }
}

// Multiples of the inverse of the hash's constant: all hashes are near one another, so that one
// label's place is behind all earlier ones.
Labels crowded_labels(int64_t count) {
  uint64_t inverse = 1;  // Newton's iteration doubles the bits that are right
  for (int step = 0; step < 6; ++step) inverse *= 2 - 0x9e3779b97f4a7c15u * inverse;
  CHECK(inverse * 0x9e3779b97f4a7c15u == 1);
  Labels labels(count);
  for (int64_t index = 0; index < count; ++index) {
    labels[index] = static_cast<int64_t>(static_cast<uint64_t>(index) * inverse);
  }
  return labels;
}

void test_labels_with_one_hash() {
  const Labels labels = crowded_labels(3000);
  check_self(labels);
  check_both(labels, crowded_labels(1000));
  Labels twice = labels;
  twice.insert(twice.end(), labels.rbegin(), labels.rend());
  check_self(twice);

  constexpr int64_t MANY = 80000;
  Ranks ranks(MANY);
  for (const int64_t label : crowded_labels(MANY)) ranks(label);
  CHECK(ranks.size() == MANY);
  CHECK_WITH(ranks.steps() <= 100 * MANY, "%lld steps", static_cast<long long>(ranks.steps()));
}

}  // namespace
}  // namespace circle_kernels

int main() {
  using namespace circle_kernels;
  test_small_cases();
  test_extreme_labels();
  test_consecutive_columns();
  test_strides();
  test_sizes_around_a_panel();
  test_labels_with_one_hash();
  return summary();
}
