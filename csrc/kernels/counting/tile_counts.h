// What one tile of similarities adds to the counts of its rows.
//
// While tiles are counted, the counter of a threshold and at_least[t] are together how many columns
// reach t and no higher threshold of the row, and `above` is what they lack to be the same of
// larger similarities; sums over thresholds follow in the end. So a pair is one addition, whatever
// its row's thresholds.
#pragma once

#include "kernels/counting/exact_tile.h"
#include "kernels/counting/thresholds.h"

namespace circle_kernels {
namespace {

// Pairs of a tile that float does not decide.
struct Doubtful {
  struct Pair {
    int32_t row, column;  // of the tile
    int32_t last;         // of the row's thresholds that it may reach
  };

  int64_t count;
  Pair pairs[PANEL * PANEL];
};

// Vectors of pairs that are looked up together: some wait while others do not.
constexpr int LOOKED_UP = 3 * LANES<float>;
static_assert(PANEL % LOOKED_UP == 0, "a row of a tile is looked up where it lies");

// The pairs of a row that may reach its lowest threshold.
class Candidates {
 public:
  int64_t count;
  int64_t below;              // of them that do not reach it
  const float* similarities;  // readable up to a multiple of LOOKED_UP

  // The column of a candidate.
  int32_t column(int64_t place) const { return packed_ ? columns_[place] : place; }

  void find(const float* row, float lowest) {
    // Where most pairs reach it all are taken as they lie.
    constexpr int64_t DENSE = PANEL * 3 / 4;
    const Vec<float> bound = splat(lowest);
    uint32_t bits[PANEL / LANES<float>];
    int64_t reached = 0;
    CIRCLE_UNROLL
    for (int part = 0; part < PANEL / LANES<float>; ++part) {
      bits[part] = at_least_bits(load(row + part * LANES<float>), bound);
      reached += __builtin_popcount(bits[part]);
    }
    packed_ = reached < DENSE;
    similarities = packed_ ? packed_similarities_ : row;
    count = packed_ ? reached : PANEL;
    below = count - reached;
    if (packed_) pack(row, bits);
  }

 private:
  void pack(const float* row, const uint32_t* bits) {
    int64_t found = 0;
    for (int part = 0; part < PANEL / LANES<float>; ++part) {
      const int32_t column = part * LANES<float>;
#if CIRCLE_VECTOR_BYTES == 64 && defined(__AVX512F__)
      const __m512i places =
          _mm512_add_epi32(_mm512_set1_epi32(column),
                           _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
      const auto mask = static_cast<__mmask16>(bits[part]);
      _mm512_storeu_ps(packed_similarities_ + found,
                       _mm512_maskz_compress_ps(mask, _mm512_loadu_ps(row + column)));
      _mm512_storeu_si512(columns_ + found, _mm512_maskz_compress_epi32(mask, places));
      found += __builtin_popcount(bits[part]);
#else
      for (uint32_t rest = bits[part]; rest != 0; rest &= rest - 1) {
        const int32_t place = column + __builtin_ctz(rest);
        packed_similarities_[found] = row[place];
        columns_[found] = place;
        ++found;
      }
#endif
    }
  }

  bool packed_;
  float packed_similarities_[PANEL + LOOKED_UP];  // vectors are written and read beyond the last
  int32_t columns_[PANEL + LOOKED_UP];
};

template <bool shared, class Count>
CIRCLE_INLINE void increase(Count* count, Count by) {
  if (shared) {
    __atomic_fetch_add(count, by, __ATOMIC_RELAXED);
  } else {
    *count += by;
  }
}

// Adds a row's candidates to the counters of its thresholds, or those that float does not decide to
// `doubtful`. A function of its own, so that its loop has all registers.
template <bool shared, int per_window>
__attribute__((noinline)) void add_candidates(const Candidates& candidates,
                                              const RowThresholds& thresholds, int32_t row,
                                              uint32_t* counters, Doubtful& doubtful) {
  const int64_t count = candidates.count;
  int32_t last[PANEL + LOOKED_UP];
  for (int64_t begin = 0; begin < count; begin += LOOKED_UP) {
    uint64_t decided = 0;
    CIRCLE_UNROLL
    for (int lane = 0; lane < LOOKED_UP; lane += LANES<float>) {
      const Found found = thresholds.find<per_window>(load(candidates.similarities + begin + lane));
      store(last + begin + lane, found.last);
      decided |= uint64_t{found.decided} << lane;
    }
    const int64_t rest = count - begin;
    const int present = rest < LOOKED_UP ? static_cast<int>(rest) : LOOKED_UP;
    uint64_t undecided = ~decided & ((uint64_t{1} << present) - 1);
    for (; undecided != 0; undecided &= undecided - 1) {
      const int64_t place = begin + __builtin_ctzll(undecided);
      doubtful.pairs[doubtful.count++] = {row, candidates.column(place), last[place]};
      increase<shared>(counters + last[place], ~0u);  // all are counted below
    }
  }
  for (int64_t place = 0; place < count; ++place) increase<shared>(counters + last[place], 1u);
  // What does not reach the first threshold was counted as what does.
  if (candidates.below > 0) increase<shared>(counters, -static_cast<uint32_t>(candidates.below));
}

// Adds a row's pairs to the counters of FEW thresholds or less, if float decides all of them.
//
// Comparisons with all thresholds cost less then than finding a place among them, and counters that
// every pair increases are waited for.
constexpr int64_t FEW = 4;
inline bool add_directly(const float* row, const RowThresholds& thresholds, int64_t count,
                         uint32_t* counters) {
  uint32_t reached[FEW + 1] = {};
  for (int64_t place = 0; place < count; ++place) {
    const Vec<float> bound = splat(thresholds.lower[place]);
    uint32_t certain = 0;
    CIRCLE_UNROLL
    for (int64_t column = 0; column < PANEL; column += LANES<float>) {
      const Vec<float> values = load(row + column);
      reached[place] += __builtin_popcount(at_least_bits(values, bound));
      certain += __builtin_popcount(at_least_bits(values - thresholds.width, bound));
    }
    if (certain != reached[place]) return false;
  }
  for (int64_t place = 0; place < count; ++place) {
    counters[place] += reached[place] - reached[place + 1];
  }
  return true;
}

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
      const int64_t index = first_row + row;
      if (thresholds_.count(index) == 0) continue;
      if (row + AHEAD < rows) thresholds_.prefetch(index + AHEAD);
      const RowThresholds thresholds = thresholds_(index);
      uint32_t* counters = thresholds_.counters(index);
      const float* similarities = tile + row * PANEL;
      const int64_t count = thresholds_.count(index);
      if (count <= FEW && !shared_ && add_directly(similarities, thresholds, count, counters)) {
        continue;
      }
      candidates.find(similarities, thresholds.lower[0]);
      const auto add_with = [&](auto add_candidates) {
        add_candidates(candidates, thresholds, static_cast<int32_t>(row), counters, doubtful);
      };
      if (shared_) {
        add_with(add_candidates<true, 0>);
        continue;
      }
      switch (thresholds.per_window) {
        case 1:
          add_with(add_candidates<false, 1>);
          break;
        case 2:
          add_with(add_candidates<false, 2>);
          break;
        case 4:
          add_with(add_candidates<false, 4>);
          break;
        case 8:
          add_with(add_candidates<false, 8>);
          break;
        default:
          add_with(add_candidates<false, 0>);
      }
    }
  }

  // Asks for what add() needs of a pair.
  CIRCLE_INLINE void prefetch(int64_t row, int32_t last) const {
    const int64_t place = thresholds_.first(row) + last;
    __builtin_prefetch(counts_.thresholds + place);
    __builtin_prefetch(counts_.at_least + place, 1);
    __builtin_prefetch(counts_.above + place, 1);
  }

  // Adds one pair by its exact similarity, which reaches thresholds up to the last one or less.
  void add(int64_t row, int32_t last, double similarity) const {
    const int64_t first = thresholds_.first(row);
    const int64_t larger = first_above<true>(similarity, first, first + last + 1);
    const int64_t as_large = first_above<false>(similarity, first, larger);
    if (larger > first) increase_shared(counts_.at_least + larger - 1, 1);
    if (as_large == larger) return;
    increase_shared(counts_.above + larger - 1, -1);
    if (as_large > first) increase_shared(counts_.above + as_large - 1, 1);
  }

  // Once all pairs are added: makes counts of a row's increments.
  void finish(int64_t row) const {
    const int64_t first = thresholds_.first(row);
    int64_t at_least = 0, above = 0;
    const uint32_t* counters = thresholds_.counters(row);
    for (int64_t place = first + thresholds_.count(row) - 1; place >= first; --place) {
      at_least += counts_.at_least[place] + counters[place - first];
      above += counts_.above[place];
      counts_.at_least[place] = at_least;
      counts_.above[place] = at_least + above;
    }
  }

 private:
  static constexpr int64_t AHEAD = 4;  // rows that are asked for before they are counted

  void increase_shared(int64_t* count, int64_t by) const {
    shared_ ? increase<true>(count, by) : increase<false>(count, by);
  }

  // The first threshold above a similarity, or at least as large, from `first` to `end`, of which
  // it mostly is the last or the one before.
  template <bool above>
  int64_t first_above(double similarity, int64_t first, int64_t end) const {
    for (int64_t width = 1; first < end; width *= 2) {
      const int64_t middle = end - first > 2 * width ? end - width : first + (end - first) / 2;
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
