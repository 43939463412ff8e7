// Similarities that do not depend on the order in which they are summed.
#pragma once

#include "common/counts.h"
#include "kernels/counts/interruption.h"
#include "kernels/vectors/simd.h"

namespace circle_kernels {
namespace {

// The multiple of 2^-26 that is nearest: 2^-26 is the step of doubles at the size of what is added
// and taken away again.
template <class V>
CIRCLE_INLINE V high_part(V value) {
  constexpr double TO_HIGH = 0x1.8p26;
  return (value + TO_HIGH) - TO_HIGH;
}

// Products of high parts, and of a high and a low part; all sums of either are exact.
template <class V>
struct ExactSums {
  V high{}, low_of_columns{}, low_of_rows{};

  CIRCLE_INLINE void add(V row, V column) {
    const V row_high = high_part(row), column_high = high_part(column);
    high += row_high * column_high;
    low_of_columns += row_high * (column - column_high);
    low_of_rows += (row - row_high) * column_high;
  }
};

inline double exact_similarity(const double* row, const double* column, int64_t dim) {
  ExactSums<Vec<double>> sums;
  ExactSums<double> rest;
  int64_t d = 0;
  for (; d + LANES<double> <= dim; d += LANES<double>) sums.add(load(row + d), load(column + d));
  for (; d < dim; ++d) rest.add(row[d], column[d]);
  const double low = sum<double>(sums.low_of_columns + sums.low_of_rows);
  return (sum<double>(sums.high) + rest.high) + (low + (rest.low_of_columns + rest.low_of_rows));
}

bool exact_similarities(const ExactSides& sides, const IndexPairs& pairs, double* similarities) {
  Interruption interruption(sides.interrupted);
#pragma omp parallel for schedule(dynamic, 256) num_threads(sides.threads)
  for (int64_t pair = 0; pair < pairs.count; ++pair) {
    if (pair % 256 == 0 ? interruption.asked() : interruption.wanted()) continue;
    similarities[pair] =
        exact_similarity(sides.rows + pairs.rows[pair] * sides.dim,
                         sides.columns + pairs.columns[pair] * sides.dim, sides.dim);
  }
  return !interruption.wanted();
}

}  // namespace
}  // namespace circle_kernels
