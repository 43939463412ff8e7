// How many columns are as similar to each row as its thresholds say: what ranks are made of.
//
// Rows and columns are of norms of at most 1 but for rounding, their coordinates multiples of 2^-g
// with g = 52 - ceil(log2(dim) / 2) (evaluation/exact.py): the sums that exact_similarity is of are
// then the same in any order.
#pragma once

#include <cstdint>

namespace circle_kernels {

struct ExactSides {
  const double* rows;  // (num_rows, dim), contiguous
  int64_t num_rows;
  const double* columns;  // (num_columns, dim), contiguous
  int64_t num_columns;
  int64_t dim;
  int threads;
  bool (*interrupted)();  // as Problem has it
};

struct Thresholds {
  const double* values;    // ascending within each row's run
  const int64_t* offsets;  // (num_rows + 1,): where the runs begin, and the last one's end
};

// Of each threshold how many columns are at least as similar, and more similar.
struct Counts {
  int64_t* at_least;
  int64_t* above;
};

struct IndexPairs {
  const int64_t* rows;
  const int64_t* columns;
  int64_t count;
};

}  // namespace circle_kernels
