// What one tile of similarities adds to the counts of its rows.
//
// While tiles are counted, at_least[t] is how many columns reach t and no higher threshold of the
// row, and `above` is what `at_least` lacks to be the same of larger similarities; sums over
// thresholds follow in the end. So a pair is one addition, whatever its row's thresholds.
#pragma once

#include "kernels/counting/exact_tile.h"
#include "kernels/counting/thresholds.h"

namespace circle_kernels {
namespace {

// Pairs of a tile that float does not decide.
struct Doubtful {
  int64_t count;
  int32_t places[PANEL * PANEL];  // row * PANEL + column
};

// The pairs of a row that reach its lowest threshold.
struct Candidates {
  int64_t count;
  float similarities[PANEL + LANES<float>];
  int32_t columns[PANEL + LANES<float>];

  void find(const float* row, float lowest) {
    const Vec<float> bound = splat(lowest);
    count = 0;
    for (int32_t column = 0; column < PANEL; column += LANES<float>) {
      const Vec<float> values = load(row + column);
      uint32_t bits = at_least_bits(values, bound);
#if CIRCLE_VECTOR_BYTES == 64 && defined(__AVX512F__)
      const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
      const auto mask = static_cast<__mmask16>(bits);
      _mm512_storeu_ps(similarities + count, _mm512_maskz_compress_ps(mask, (__m512)values));
      _mm512_storeu_si512(
          columns + count,
          _mm512_add_epi32(_mm512_set1_epi32(column), _mm512_maskz_compress_epi32(mask, lanes)));
      count += _mm_popcnt_u32(bits);
#else
      for (; bits != 0; bits &= bits - 1) {
        const int32_t place = column + __builtin_ctz(bits);
        similarities[count] = row[place];
        columns[count] = place;
        ++count;
      }
#endif
    }
  }
};

// Of one thread.
struct CountScratch {
  alignas(64) float tile[PANEL * PANEL];
  alignas(64) float transposed[PANEL * PANEL];
  Candidates candidates;
  Doubtful doubtful, doubtful_transposed;
  ExactTile exact;
};

// The counts of one side's rows.
class RowCounts {
 public:
  // With `shared` several threads add to a row's counts at once.
  RowCounts(const ThresholdCounts& counts, const Thresholds& thresholds, bool shared)
      : counts_(counts), thresholds_(thresholds), shared_(shared) {}

  // Whether any of a panel's rows has thresholds.
  bool any(int64_t first_row, int64_t rows) const {
    return thresholds_.first(first_row) < thresholds_.first(first_row + rows);
  }

  // Adds the pairs of a tile that float decides, and returns the others.
  void add(const float* tile,  // (PANEL, PANEL), NaN beside the columns
           int64_t first_row, int64_t rows, Candidates& candidates, Doubtful& doubtful) const {
    doubtful.count = 0;
    for (int64_t row = 0; row < rows; ++row) {
      const RowThresholds thresholds = thresholds_(first_row + row);
      if (thresholds.count == 0) continue;
      int64_t* counts = counts_.at_least + thresholds_.first(first_row + row);
      candidates.find(tile + row * PANEL, thresholds.lower[0]);
      for (int64_t place = 0; place < candidates.count; ++place) {
        const float similarity = candidates.similarities[place];
        const int64_t reached = thresholds.reached(similarity);
        if (thresholds.certain(similarity, reached)) {
          increase(counts + reached - 1, 1);
        } else {
          doubtful.places[doubtful.count++] =
              static_cast<int32_t>(row * PANEL + candidates.columns[place]);
        }
      }
    }
  }

  // Adds one pair by its exact similarity.
  void add(int64_t row, double similarity) const {
    const int64_t first = thresholds_.first(row), end = first + thresholds_.count(row);
    const int64_t larger = first_above<true>(similarity, first, end);
    const int64_t as_large = first_above<false>(similarity, first, larger);
    if (larger > first) increase(counts_.at_least + larger - 1, 1);
    if (as_large == larger) return;
    increase(counts_.above + larger - 1, -1);
    if (as_large > first) increase(counts_.above + as_large - 1, 1);
  }

  // Once all pairs are added: makes counts of a row's increments.
  void finish(int64_t row) const {
    const int64_t first = thresholds_.first(row);
    int64_t at_least = 0, above = 0;
    for (int64_t place = first + thresholds_.count(row) - 1; place >= first; --place) {
      at_least += counts_.at_least[place];
      above += counts_.above[place];
      counts_.at_least[place] = at_least;
      counts_.above[place] = at_least + above;
    }
  }

 private:
  CIRCLE_INLINE void increase(int64_t* count, int64_t by) const {
    if (shared_) {
      __atomic_fetch_add(count, by, __ATOMIC_RELAXED);
    } else {
      *count += by;
    }
  }

  // The first threshold above a similarity, or at least as large, from `first` to `end`.
  template <bool above>
  int64_t first_above(double similarity, int64_t first, int64_t end) const {
    while (first < end) {
      const int64_t middle = first + (end - first) / 2;
      const double threshold = counts_.thresholds[middle];
      (above ? threshold > similarity : threshold >= similarity) ? end = middle
                                                                 : first = middle + 1;
    }
    return first;
  }

  const ThresholdCounts& counts_;
  const Thresholds& thresholds_;
  bool shared_;
};

}  // namespace
}  // namespace circle_kernels
