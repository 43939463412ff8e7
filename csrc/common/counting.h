// What exact evaluation asks of the kernels: similarities without rounding errors that could depend
// on who computes them, and how many of them reach thresholds. Plain structs, as in problem.h.
#pragma once

#include <cstdint>

namespace circle_kernels {

// Two sets of embeddings, contiguous, with norms of at most 1 + 2^-40. Coordinates are multiples of
// 2^-g, where g = 52 - ceil(log2(D) / 2): sums of products of their high parts, multiples of 2^-26,
// and sums of products of a high and a low part are then exact in double, in any order. The
// similarity of two embeddings is the one rounding of the sum of both sums.
struct ExactSides {
  const double* rows;     // (R, D)
  const double* columns;  // (M, D)
  int64_t dim;
  int threads;            // at least 1
  bool (*interrupted)();  // as Problem::interrupted
};

// The similarities of some pairs.
struct ExactPairs {
  const int64_t* rows;     // (P,)
  const int64_t* columns;  // (P,)
  int64_t count;
  double* similarities;  // (P,)
};

// Thresholds for the similarities of each row with all columns, and how many reach them.
struct ThresholdCounts {
  int64_t rows, columns;     // R, M, which is less than 2^32
  const double* thresholds;  // (T,) ascending within each row's run
  const int64_t* offsets;    // (R + 1,) row i's run begins at offsets[i], the next one's after it
  int64_t* at_least;         // (T,) how many similarities are at least as large
  int64_t* above;            // (T,) how many are larger
  int64_t* counted;          // how many pairs have been counted so far; null if nobody asks
};

}  // namespace circle_kernels
