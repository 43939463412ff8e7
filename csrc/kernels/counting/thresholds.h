// Which of a row's thresholds a similarity in float certainly reaches.
#pragma once

#include <limits>

#include "common/counting.h"
#include "common/problem.h"
#include "kernels/counting/bounded_product.h"
#include "kernels/tiles/operands.h"

namespace circle_kernels {
namespace {

// Bits of the lanes in which `a` is at least `b`; not set where one of both is NaN.
CIRCLE_INLINE uint32_t at_least_bits(Vec<float> a, Vec<float> b) {
#if CIRCLE_VECTOR_BYTES == 64 && defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GE_OQ);
#elif CIRCLE_VECTOR_BYTES == 32 && defined(__AVX__)
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_GE_OQ));
#elif CIRCLE_VECTOR_BYTES == 16 && defined(__SSE2__)
  return _mm_movemask_ps(_mm_cmpge_ps((__m128)a, (__m128)b));
#elif CIRCLE_VECTOR_BYTES == 16 && defined(__aarch64__)
  const Vec<int32_t> lane_bits{1, 2, 4, 8};
  return vaddvq_u32((uint32x4_t)((a >= b) & lane_bits));
#else
  uint32_t bits = 0;
  for (int lane = 0; lane < LANES<float>; ++lane) bits |= uint32_t{a[lane] >= b[lane]} << lane;
  return bits;
#endif
}

// Windows of neighbours that a row's thresholds are divided into: as many as a vector of the widest
// registers has lanes, so that one instruction looks up a number of each lane's window.
constexpr int WINDOWS = 16;

// The numbers at some places of a table.
CIRCLE_INLINE Vec<float> look_up(const float* table, Vec<int32_t> places) {
  Vec<float> found;
  CIRCLE_UNROLL
  for (int lane = 0; lane < LANES<float>; ++lane) found[lane] = table[places[lane]];
  return found;
}

// The same of table[count][WINDOWS] at [place][window], where places are a multiple of `step` and
// `first`, and less than `count` steps.
template <int first, int step, int count>
CIRCLE_INLINE Vec<float> look_up_in_windows(const float* table, Vec<int32_t> places,
                                            Vec<int32_t> windows) {
#if CIRCLE_VECTOR_BYTES == 64 && defined(__AVX512F__)
  if constexpr (count == 1) {
    return (Vec<float>)_mm512_permutexvar_ps((__m512i)windows,
                                             _mm512_loadu_ps(table + first * WINDOWS));
  } else {
    constexpr int HALF = count / 2 * step;
    const Vec<float> low = look_up_in_windows<first, step, count / 2>(table, places, windows);
    const Vec<float> high =
        look_up_in_windows<first + HALF, step, count / 2>(table, places, windows);
    const __mmask16 is_high = _mm512_test_epi32_mask((__m512i)places, _mm512_set1_epi32(HALF));
    return (Vec<float>)_mm512_mask_blend_ps(is_high, (__m512)low, (__m512)high);
  }
#else
  return look_up(table, (places + first) * WINDOWS + windows);
#endif
}

// Where similarities in float are among the thresholds of a row.
struct Found {
  Vec<int32_t> last;  // of the thresholds that they may reach
  // Bits of those that are certainly above this one, and all before it, or below all.
  uint32_t decided;
};

// The thresholds of one row.
struct RowThresholds {
  // [per_window][WINDOWS] A similarity in float below it is certainly below the threshold; infinity
  // after the last one.
  const float* lower;
  int32_t per_window;  // a power of two
  float width;         // what is so far above `lower` is certainly above the threshold

  // By bisection of windows, then in them, with `size` as `per_window`, or 0. Those below all
  // thresholds are said to reach the first.
  template <int size>
  CIRCLE_INLINE Found find(Vec<float> similarities) const {
    Vec<float> reached = splat(lower[0]);
    Vec<int32_t> windows{}, places{};
    const auto go_on = [&](Vec<int32_t>& at, int32_t step, Vec<float> numbers) {
#if CIRCLE_VECTOR_BYTES == 64 && defined(__AVX512F__)
      // Compilers compare twice.
      const __mmask16 does = _mm512_cmp_ps_mask((__m512)similarities, (__m512)numbers, _CMP_GE_OQ);
      at = (Vec<int32_t>)_mm512_mask_add_epi32((__m512i)at, does, (__m512i)at,
                                               _mm512_set1_epi32(step));
      reached = (Vec<float>)_mm512_mask_mov_ps((__m512)reached, does, (__m512)numbers);
#else
      const Vec<int32_t> does = similarities >= numbers;
      at += does & step;
      reached = select<float>(does, numbers, reached);
#endif
    };
    CIRCLE_UNROLL
    for (int32_t step = WINDOWS / 2; step > 0; step /= 2) {
      go_on(windows, step, look_up_in_windows<0, 1, 1>(lower, Vec<int32_t>{}, windows + step));
    }
    if constexpr (size == 0) {
      for (int32_t step = per_window / 2; step > 0; step /= 2) {
        go_on(places, step, look_up(lower, (places + step) * WINDOWS + windows));
      }
    }
    if constexpr (size > 1) bisect<size, size / 2>(places, windows, go_on);
    constexpr uint32_t ALL = (uint32_t{1} << LANES<float>)-1;
    const uint32_t below = ALL & ~at_least_bits(similarities, splat(lower[0]));
    return {windows * per_window + places, at_least_bits(similarities - width, reached) | below};
  }

 private:
  template <int size, int step, class GoOn>
  CIRCLE_INLINE void bisect(Vec<int32_t>& places, Vec<int32_t> windows, GoOn go_on) const {
    go_on(places, step,
          look_up_in_windows<step, 2 * step, size / (2 * step)>(lower, places, windows));
    if constexpr (step > 1) bisect<size, step / 2>(places, windows, go_on);
  }
};

// Those of all rows, and a counter for each.
class Thresholds {
 public:
  Thresholds(const ThresholdCounts& counts, int64_t dim, Arena& arena)
      : counts_(counts),
        error_(similarity_error(dim)),
        starts_(allocate<int64_t>(arena, counts.rows + 1)),
        counters_(allocate<uint32_t>(arena, counts.offsets[counts.rows])) {
    starts_[0] = 0;
    for (int64_t row = 0; row < counts.rows; ++row) {
      starts_[row + 1] = starts_[row] + WINDOWS * per_window(count(row));
    }
    lower_ = allocate<float>(arena, starts_[counts.rows]);
  }

  int64_t first(int64_t row) const { return counts_.offsets[row]; }
  int64_t count(int64_t row) const { return first(row + 1) - first(row); }
  // One for each of a row's thresholds, 0 in the beginning.
  uint32_t* counters(int64_t row) const { return counters_ + first(row); }

  // Asks for what all pairs of a row need, and those that reach few thresholds.
  CIRCLE_INLINE void prefetch(int64_t row) const {
    __builtin_prefetch(lower_ + starts_[row]);
    __builtin_prefetch(counters(row), 1);
  }

  // Before operator() is called for the row.
  void prepare(int64_t row) const {
    float* lower = lower_ + starts_[row];
    const double* thresholds = counts_.thresholds + first(row);
    const int64_t size = count(row), in_window = per_window(size);
    if (size > 0) std::memset(counters(row), 0, size * sizeof(uint32_t));
    for (int64_t place = 0; place < WINDOWS * in_window; ++place) {
      // One step of floats below 2 more than the error, for the rounding to float.
      lower[place % in_window * WINDOWS + place / in_window] =
          place < size ? static_cast<float>(thresholds[place] - (error_ + STEP / 2))
                       : std::numeric_limits<float>::infinity();
    }
  }

  // `lower` is up to a step and the error below the threshold, and differences from `width` are
  // rounded by half a step; half a step remains for its own rounding.
  RowThresholds operator()(int64_t row) const {
    return {lower_ + starts_[row], static_cast<int32_t>(per_window(count(row))),
            static_cast<float>(2 * (error_ + STEP))};
  }

 private:
  static constexpr double STEP = 0x1p-23;  // of floats from 1 to 2

  static int64_t per_window(int64_t count) {
    int64_t size = 1;
    while (size * WINDOWS < count) size *= 2;
    return size;
  }

  const ThresholdCounts& counts_;
  double error_;
  int64_t* starts_;  // (R + 1,) where each row's numbers begin
  float* lower_;
  uint32_t* counters_;  // (T,)
};

}  // namespace
}  // namespace circle_kernels
