// Lists of pairs as a matrix of what they say, which Problem::listed points to.
#pragma once

#include <cstdint>

namespace circle_kernels {

// One kind of pair, listed.
struct PairList {
  const int64_t* rows;     // (count,) below 0 counted from the end
  const int64_t* columns;  // (count,)
  int64_t count;
  uint8_t kind;  // of ListedPair
};

// Where the kinds of all pairs go, one byte each.
struct PairMatrix {
  uint8_t* kinds;
  int64_t rows, columns, row_stride;
};

// Adds a list's kind to all of its pairs. False where one of them is not in the matrix.
bool mark_pairs(const PairList& list, const PairMatrix& matrix, int threads);

}  // namespace circle_kernels
