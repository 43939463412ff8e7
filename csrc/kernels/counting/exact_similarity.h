// Similarities of single pairs without rounding errors, but for one; common/counting.h says how.
#pragma once

#include "common/counting.h"
#include "kernels/tiles/threads.h"
#include "kernels/vectors/simd.h"

namespace circle_kernels {
namespace {

// A number as a multiple of 2^-26 and the rest, at most 2^-27.
template <class V>
struct GridParts {
  V high, low;

  explicit CIRCLE_INLINE GridParts(V number) {
    // Doubles of this size are 2^-26 apart.
    constexpr double TO_HIGH = 1.5 * 0x1p26;
    high = (number + TO_HIGH) - TO_HIGH;
    low = number - high;
  }
};

// Both sums of a similarity, each exact, in as many lanes as a vector has.
struct ExactSums {
  Vec<double> high{}, low{};

  CIRCLE_INLINE void add(Vec<double> a, Vec<double> b) {
    const GridParts<Vec<double>> of_a(a), of_b(b);
    high += of_a.high * of_b.high;
    low += of_a.high * of_b.low;
    low += of_a.low * of_b.high;
  }
};

inline double exact_similarity(const double* row, const double* column, int64_t dim) {
  constexpr int LANE_COUNT = LANES<double>, CHAINS = 2;
  ExactSums sums[CHAINS];
  int64_t d = 0;
  for (; d + CHAINS * LANE_COUNT <= dim; d += CHAINS * LANE_COUNT) {
    CIRCLE_UNROLL
    for (int chain = 0; chain < CHAINS; ++chain) {
      const int64_t at = d + chain * LANE_COUNT;
      sums[chain].add(load(row + at), load(column + at));
    }
  }
  for (; d < dim; d += LANE_COUNT) {
    const int64_t rest = dim - d < LANE_COUNT ? dim - d : LANE_COUNT;
    Vec<double> a{}, b{};
    std::memcpy(&a, row + d, rest * sizeof(double));
    std::memcpy(&b, column + d, rest * sizeof(double));
    sums[0].add(a, b);
  }
  return sum<double>(sums[0].high + sums[1].high) + sum<double>(sums[0].low + sums[1].low);
}

// False where it was interrupted.
bool exact_similarities(const ExactSides& sides, const ExactPairs& pairs) {
  constexpr int64_t PIECE = 256;  // pairs between questions
  Interruption interruption(sides.interrupted);
#pragma omp parallel for num_threads(sides.threads) schedule(static)
  for (int64_t begin = 0; begin < pairs.count; begin += PIECE) {
    if (interruption.asked()) continue;
    const int64_t end = begin + PIECE < pairs.count ? begin + PIECE : pairs.count;
    for (int64_t pair = begin; pair < end; ++pair) {
      pairs.similarities[pair] =
          exact_similarity(sides.rows + pairs.rows[pair] * sides.dim,
                           sides.columns + pairs.columns[pair] * sides.dim, sides.dim);
    }
  }
  return !interruption.wanted();
}

}  // namespace
}  // namespace circle_kernels
