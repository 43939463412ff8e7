// Which of a row's thresholds a similarity in float certainly reaches.
#pragma once

#include <limits>

#include "common/counting.h"
#include "common/problem.h"
#include "kernels/counting/bounded_product.h"
#include "kernels/tiles/operands.h"

namespace circle_kernels {
namespace {

// Thresholds that are compared with a similarity at once.
constexpr int COMPARED = 16;

// Bits of the lanes in which `a` is at least `b`; not set where one of both is NaN.
CIRCLE_INLINE uint32_t at_least_bits(Vec<float> a, Vec<float> b) {
#if CIRCLE_VECTOR_BYTES == 64 && defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GE_OQ);
#elif CIRCLE_VECTOR_BYTES == 32 && defined(__AVX__)
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_GE_OQ));
#elif CIRCLE_VECTOR_BYTES == 16 && defined(__SSE2__)
  return _mm_movemask_ps(_mm_cmpge_ps((__m128)a, (__m128)b));
#else
  uint32_t bits = 0;
  for (int lane = 0; lane < LANES<float>; ++lane) bits |= uint32_t{a[lane] >= b[lane]} << lane;
  return bits;
#endif
}

// How many of COMPARED ascending numbers, those before the first larger one, a value reaches.
CIRCLE_INLINE int64_t reached_in_window(const float* window, float value) {
  uint32_t bits = 0;
  CIRCLE_UNROLL
  for (int lane = 0; lane < COMPARED; lane += LANES<float>) {
    bits |= at_least_bits(splat(value), load(window + lane)) << lane;
  }
  return __builtin_ctz(~bits);
}

// The thresholds of one row.
struct RowThresholds {
  const float* lower;   // below which a similarity in float is certainly below the threshold
  const float* pivots;  // (COMPARED,) every `stride`th of them, then infinity
  int64_t count, stride;
  float width;  // so far above `lower` a similarity in float is certainly above the threshold

  // How many values of `lower` a similarity reaches that reaches the first.
  CIRCLE_INLINE int64_t reached(float similarity) const {
    const int64_t pivots_reached = reached_in_window(pivots, similarity);
    if (stride == 1) return pivots_reached;
    int64_t first = (pivots_reached - 1) * stride;  // of those that may be the last one reached
    for (int64_t size = stride; size > COMPARED; size -= size / 2) {
      const int64_t middle = first + size / 2;
      if (middle < count && similarity >= lower[middle]) first = middle;
    }
    // A window may end among the next row's.
    const int64_t found = first + reached_in_window(lower + first, similarity);
    return found < count ? found : count;
  }
  // Whether it is certainly above all thresholds of which it reaches `lower`.
  CIRCLE_INLINE bool certain(float similarity, int64_t reached) const {
    return similarity - width > lower[reached - 1];
  }
};

// Those of all rows.
class Thresholds {
 public:
  Thresholds(const ThresholdCounts& counts, int64_t dim, Arena& arena)
      : counts_(counts),
        error_(similarity_error(dim)),
        lower_(allocate<float>(arena, counts.offsets[counts.rows] + COMPARED)),
        pivots_(allocate<float>(arena, counts.rows * COMPARED)) {
    set_infinite(lower_ + counts.offsets[counts.rows]);
  }

  int64_t first(int64_t row) const { return counts_.offsets[row]; }
  int64_t count(int64_t row) const { return first(row + 1) - first(row); }

  // Before operator() is called for the row.
  void prepare(int64_t row) {
    float* lower = lower_ + first(row);
    const double* thresholds = counts_.thresholds + first(row);
    const int64_t size = count(row), step = stride(size);
    for (int64_t place = 0; place < size; ++place) {
      // One step of floats below 2 more than the error, for the rounding to float.
      lower[place] = static_cast<float>(thresholds[place] - (error_ + STEP / 2));
    }
    float* pivots = pivots_ + row * COMPARED;
    set_infinite(pivots);
    for (int64_t place = 0; place * step < size; ++place) pivots[place] = lower[place * step];
  }

  // `lower` is up to a step and the error below the threshold, and the difference that
  // RowThresholds::certain() looks at is rounded by half a step.
  RowThresholds operator()(int64_t row) const {
    const int64_t size = count(row);
    const auto width = static_cast<float>(2 * (error_ + STEP));
    return {lower_ + first(row), pivots_ + row * COMPARED, size, stride(size), width};
  }

 private:
  static constexpr double STEP = 0x1p-23;  // of floats from 1 to 2

  static int64_t stride(int64_t count) {
    return count > COMPARED ? (count + COMPARED - 1) / COMPARED : 1;
  }
  static void set_infinite(float* window) {
    for (int place = 0; place < COMPARED; ++place) {
      window[place] = std::numeric_limits<float>::infinity();
    }
  }

  const ThresholdCounts& counts_;
  double error_;
  float* lower_;   // (T + COMPARED,)
  float* pivots_;  // (R, COMPARED)
};

}  // namespace
}  // namespace circle_kernels
