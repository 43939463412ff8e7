// Log-sum-exps that saw an embedding with a NaN or an infinity become NaN; empty ones stay -inf.
// Tiles have seen zeros in its place, and need not look for it.
#pragma once

#include "kernels/tiles/saved.h"
#include "kernels/tiles/tile_logits.h"

namespace circle_kernels {
namespace {

template <class T>
constexpr T NOT_A_NUMBER = std::numeric_limits<T>::quiet_NaN();

template <class T>
bool is_broken(const Panels<T>& side, int64_t row) {
  return side.divisors[row] != side.divisors[row];
}

template <class T>
int64_t count_broken(const Panels<T>& side) {
  int64_t count = 0;
  for (int64_t row = 0; row < side.count; ++row) count += is_broken(side, row);
  return count;
}

// Where pairs are listed: whoever lists a pair saw both of its embeddings.
template <class T>
void poison_listed(const Operands<T>& operands, const LogSumExps<T>& sums) {
  const Panels<T>&rows = operands.rows, &columns = operands.columns;
  const Problem& problem = operands.problem;
  for (int64_t row = 0; row < rows.count; ++row) {
    const uint8_t* listed = problem.listed + row * problem.listed_stride;
    for (int64_t column = 0; column < columns.count; ++column) {
      if (!is_broken(rows, row) && !is_broken(columns, column)) continue;
      if (listed[column] & ROW_POSITIVE) sums.positive[row] = NOT_A_NUMBER<T>;
      if (listed[column] & ROW_NEGATIVE) sums.negative[row] = NOT_A_NUMBER<T>;
    }
  }
}

// Broken embeddings of the other side that one would count but for their being its own copies.
struct Unseen {
  int64_t positives, negatives;
};

struct UnseenCopies {
  Unseen *of_rows, *of_columns;
};

template <class T>
UnseenCopies unseen_copies(const Operands<T>& operands, Arena& arena) {
  const Panels<T>&rows = operands.rows, &columns = operands.columns;
  const auto none = [&](int64_t count) {
    Unseen* unseen = allocate<Unseen>(arena, count);
    for (int64_t index = 0; index < count; ++index) unseen[index] = {0, 0};
    return unseen;
  };
  const UnseenCopies copies{none(rows.count), none(columns.count)};
  for (int64_t row = 0; row < rows.count; ++row) {
    const int64_t column = operands.own[row];
    if (column < 0) continue;
    const bool positive = rows.class_ids[row] == columns.class_ids[column];
    const auto add = [&](Unseen& unseen) { ++(positive ? unseen.positives : unseen.negatives); };
    if (is_broken(columns, column)) add(copies.of_rows[row]);
    if (is_broken(rows, row)) add(copies.of_columns[column]);
  }
  return copies;
}

// Sums of `side` over pairs with all `others` but those unseen, which may be null.
template <class T>
void poison_side(const Panels<T>& side, const Panels<T>& others, const Unseen* unseen, Arena& arena,
                 const LogSumExps<T>& sums) {
  const auto last_class = [](const Panels<T>& of) { return of.class_ids[of.count - 1]; };
  const int64_t classes =
      1 + (last_class(side) > last_class(others) ? last_class(side) : last_class(others));
  int64_t* broken_of_class = allocate<int64_t>(arena, classes);
  for (int64_t index = 0; index < classes; ++index) broken_of_class[index] = 0;
  for (int64_t other = 0; other < others.count; ++other) {
    broken_of_class[others.class_ids[other]] += is_broken(others, other);
  }
  const int64_t broken = count_broken(others);
  for (int64_t row = 0; row < side.count; ++row) {
    const bool itself = is_broken(side, row);
    const Unseen none = unseen != nullptr ? unseen[row] : Unseen{0, 0};
    const int64_t of_class = broken_of_class[side.class_ids[row]];
    const bool positives = itself || of_class > none.positives;
    const bool negatives = itself || broken - of_class > none.negatives;
    if (positives && sums.positive[row] != -INFINITE<T>) sums.positive[row] = NOT_A_NUMBER<T>;
    if (negatives && sums.negative[row] != -INFINITE<T>) sums.negative[row] = NOT_A_NUMBER<T>;
  }
}

template <class T>
void poison(const Operands<T>& operands, Arena& arena, const Saved<T>& saved) {
  const Panels<T>&rows = operands.rows, &columns = operands.columns;
  if (count_broken(rows) + count_broken(columns) == 0) return;
  if (operands.problem.listed != nullptr) {
    poison_listed(operands, saved.rows);
    return;
  }
  const bool copies = operands.problem.own_columns != nullptr;
  const UnseenCopies unseen = copies ? unseen_copies(operands, arena) : UnseenCopies{};
  poison_side(rows, columns, unseen.of_rows, arena, saved.rows);
  if (operands.problem.both_sides) {
    poison_side(columns, rows, unseen.of_columns, arena, saved.columns);
  }
}

// Hands on to the caller's order what a log-sum-exp has become since it was written there: NaN, or
// infinite where logits are that programs gave. The backward pass finds nothing to do for a sum of
// 0, and NaN for one without an end.
template <class T, bool evaluated>
void hand_on_specials(const Panels<T>& side, T* base_2, T* natural) {
  constexpr T ENDLESS = LARGEST_LOGIT<T> / 2;
  for (int64_t row = 0; row < side.count; ++row) {
    T& sum = base_2[row];
    T& result = natural[side.caller_row(row)];
    if (sum != sum) result = sum;
    if (!evaluated) continue;
    if (sum > ENDLESS) {
      result = INFINITE<T>;
      sum = NOT_A_NUMBER<T>;
    } else if (sum < -ENDLESS) {
      result = sum = -INFINITE<T>;
    }
  }
}

}  // namespace
}  // namespace circle_kernels
