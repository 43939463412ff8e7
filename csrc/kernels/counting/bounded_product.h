// Similarities in float with a known bound of their error.
#pragma once

#include <limits>

#include "kernels/products/register_product.h"

namespace circle_kernels {
namespace {

// Products of a similarity that are added to one another one by one; then all such sums are. A
// product is rounded as often as numbers are added after it, so this bounds the error, not the
// depth. What a shorter chain costs is its sums' way to memory and back.
constexpr int64_t CHAIN = 32;

// How far a similarity of bounded_tile() is at most from the exact one.
//
// A product of two coordinates goes through at most CHAIN roundings in its chain (without a fused
// multiply-add its own and CHAIN - 1 sums) and one in each sum of chains after it: n in all. Both
// coordinates have been rounded to float before. With u = 2^-24 and gamma(k) = k u / (1 - k u) the
// error is at most gamma(n + 2) sum_d |x_d y_d|, and the sum at most the norms' product, 1 + 2^-39
// (Higham, Accuracy and Stability of Numerical Algorithms, lemmas 3.1 and 3.3). The norms' excess,
// what the exact similarity itself leaves out (D 2^-54) and rounds (2^-53), and numbers too small
// for float's precision (D 2^-126 even where they become zero) are together less than another u.
inline double similarity_error(int64_t dim) {
  constexpr double UNIT = 0x1p-24;
  const int64_t chains = (dim + CHAIN - 1) / CHAIN;
  const double units = static_cast<double>(CHAIN + chains + 3) * UNIT;
  // Of more dimensions than anybody has nothing is known: every pair is to be computed exactly.
  return units < 0.5 ? units / (1 - units) : 1e30;
}

// tile(i, j) = sum_d rows(d, i) columns(d, j), with NaN for padding among the columns, which is
// neither above nor below any threshold. Rows of padding hold anything.
void bounded_tile(const float* rows,     // (depth, PANEL)
                  const float* columns,  // (depth, PANEL)
                  int64_t depth, int64_t live_rows, int64_t live_columns,
                  float* tile) {  // (PANEL, PANEL)
  // As in similarity_tile: a strip of the columns stays in the first-level cache.
  constexpr int64_t DEEPEST = 6 * CHAIN;
  int64_t begin = 0;
  do {
    const int64_t end = begin + DEEPEST < depth ? begin + DEEPEST : depth;
    for_each_part<float>(live_columns, [&](int64_t column, auto width) {
      for (int64_t row = 0; row < live_rows; row += REGISTER_ROWS) {
        int64_t first = begin;
        do {
          const int64_t chain = end - first < CHAIN ? end - first : CHAIN;
          multiply_registers<float, REGISTER_ROWS, decltype(width)::value, 1, PANEL, false>(
              rows + first * PANEL + row, nullptr, columns + first * PANEL + column, chain,
              tile + row * PANEL + column, first > 0);
          first += chain;
        } while (first < end);
      }
    });
    begin = end;
  } while (begin < depth);
  for (int64_t row = 0; row < live_rows && live_columns < PANEL; ++row) {
    for (int64_t column = live_columns; column < PANEL; ++column) {
      tile[row * PANEL + column] = std::numeric_limits<float>::quiet_NaN();
    }
  }
}

}  // namespace
}  // namespace circle_kernels
