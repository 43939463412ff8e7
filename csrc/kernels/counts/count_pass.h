// Counts over all pairs, without the matrix: float32 products decide nearly all of them.
#pragma once

#include <new>

#include "kernels/counts/cells.h"
#include "kernels/counts/exact_similarity.h"
#include "kernels/products/register_product.h"

namespace circle_kernels {
namespace {

// Depth of the strips that float32 products are summed in: shorter chains of roundings leave fewer
// pairs undecided than longer ones save time.
constexpr int64_t COUNT_STRIP = 32;
// Panels of columns that a row is compared with in turn, while its table is in the cache.
constexpr int64_t COLUMN_GROUP = 4;

// How far a float32 similarity may be from the exact one: of inputs and products one rounding each,
// of sums those of a strip and of all strips; sums of magnitudes are at most 1 (Cauchy-Schwarz).
// Products of low parts are not in the exact one.
inline double similarity_error(int64_t dim) {
  const int64_t strips = (dim + COUNT_STRIP - 1) / COUNT_STRIP;
  const double roundings = static_cast<double>(COUNT_STRIP + strips + 5);
  return 1.001 * roundings * 0x1p-24 + static_cast<double>(dim) * 0x1p-54;
}

CIRCLE_INLINE int64_t smaller(int64_t one, int64_t other) { return one < other ? one : other; }
CIRCLE_INLINE int64_t larger(int64_t one, int64_t other) { return one < other ? other : one; }

// How many of ascending numbers are below a value, or with `equal` at most as large.
inline int64_t count_below(const double* ascending, int64_t count, double value, bool equal) {
  int64_t low = 0, high = count;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    const bool counted = equal ? ascending[middle] <= value : ascending[middle] < value;
    counted ? low = middle + 1 : high = middle;
  }
  return low;
}

// PANEL rows as float32, side by side; 0 for padding.
inline void pack_counted(const double* rows, int64_t live, int64_t dim, float* panel) {
  for (int64_t d = 0; d < dim; ++d) std::memset(panel + d * PANEL + live, 0, (PANEL - live) * 4);
  for (int64_t row = 0; row < live; ++row) {
    for (int64_t d = 0; d < dim; ++d)
      panel[d * PANEL + row] = static_cast<float>(rows[row * dim + d]);
  }
}

// What one thread counts with: PANEL rows at a time, a part of their thresholds.
class CountedRows {
 public:
  CountedRows(const ExactSides& sides, const Thresholds& thresholds, int64_t most, Arena& arena)
      : sides_(sides),
        thresholds_(thresholds),
        most_(most),
        error_(similarity_error(sides.dim)),
        panel_(allocate<float>(arena, PANEL * sides.dim)),
        tiles_(allocate<float>(arena, COLUMN_GROUP * PANEL * PANEL)),
        bounds_(allocate<float>(arena, 2 * PANEL * most)),
        below_(allocate<uint16_t>(arena, PANEL * (Cells::size_for(most) + 2))),
        counts_(allocate<int32_t>(arena, 3 * PANEL * (most + 1))) {}

  // Counts the rows of a panel among all columns.
  void count(int64_t index, const float* columns, const Counts& result,
             Interruption& interruption) {
    first_row_ = index * PANEL;
    live_ = smaller(PANEL, sides_.num_rows - first_row_);
    pack_counted(sides_.rows + first_row_ * sides_.dim, live_, sides_.dim, panel_);
    const int64_t* offsets = thresholds_.offsets + first_row_;
    int64_t longest = 0;
    for (int64_t row = 0; row < live_; ++row) {
      longest = larger(longest, offsets[row + 1] - offsets[row]);
    }
    for (int64_t begin = 0; begin < longest; begin += most_) {
      begin_part(begin);
      const int64_t panels = panels_of(sides_.num_columns);
      for (int64_t first = 0; first < panels; first += COLUMN_GROUP) {
        if (interruption.asked()) return;
        count_group(first, smaller(first + COLUMN_GROUP, panels), columns);
      }
      end_part(begin, result);
    }
  }

 private:
  // In a histogram of a row's pairs by how many thresholds they reach.
  int32_t* decided(int64_t row) const { return counts_ + row * (most_ + 1); }
  int32_t* at_least(int64_t row) const { return decided(PANEL + row); }
  int32_t* above(int64_t row) const { return decided(2 * PANEL + row); }
  const double* values(int64_t row, int64_t begin) const {
    return thresholds_.values + thresholds_.offsets[first_row_ + row] + begin;
  }

  void begin_part(int64_t begin) {
    std::memset(counts_, 0, 3 * PANEL * (most_ + 1) * sizeof *counts_);
    const int64_t* offsets = thresholds_.offsets + first_row_;
    for (int64_t row = 0; row < live_; ++row) {
      Cells& cells = cells_[row];
      const int64_t left = offsets[row + 1] - offsets[row] - begin;
      cells.count = smaller(larger(left, 0), most_);
      cells.low = bounds_ + 2 * row * most_;
      cells.high = cells.low + most_;
      cells.below = below_ + row * (Cells::size_for(most_) + 2);
      if (cells.count > 0) cells.fill(values(row, begin), cells.count, error_);
    }
    begin_ = begin;
  }

  void count_group(int64_t first, int64_t last, const float* columns) {
    for (int64_t panel = first; panel < last; ++panel) {
      similarity_tile<float>(panel_, columns + panel * PANEL * sides_.dim, sides_.dim, live_,
                             live_columns(panel), false, tiles_ + (panel - first) * PANEL * PANEL,
                             Ignore{}, COUNT_STRIP);
    }
    for (int64_t row = 0; row < live_; ++row) {
      if (cells_[row].count == 0) continue;
      for (int64_t panel = first; panel < last; ++panel) {
        count_row(row, panel, tiles_ + ((panel - first) * PANEL + row) * PANEL);
      }
    }
  }

  int64_t live_columns(int64_t panel) const {
    return smaller(PANEL, sides_.num_columns - panel * PANEL);
  }

  void count_row(int64_t row, int64_t panel, const float* similarities) {
    const Cells& cells = cells_[row];
    int32_t places[PANEL];
    for (int64_t column = 0; column < PANEL; column += LANES<float>) {
      store(places + column, cells.of(load(similarities + column)));
    }
    const int64_t live = live_columns(panel);
    int32_t* counts = decided(row);
    for (int64_t column = 0; column < live; ++column) {
      const uint16_t below = cells.below[places[column]];
      if (below & Cells::UNDECIDED) {
        decide(row, panel * PANEL + column, below ^ Cells::UNDECIDED, similarities[column]);
      } else {
        ++counts[below];
      }
    }
  }

  // Of a pair of which so many thresholds are certainly below.
  void decide(int64_t row, int64_t column, int64_t below, float similarity) {
    const Cells& cells = cells_[row];
    while (below < cells.count && similarity > cells.high[below]) ++below;
    if (below == cells.count || similarity < cells.low[below]) {
      ++decided(row)[below];
      return;
    }
    const double exact = exact_similarity(sides_.rows + (first_row_ + row) * sides_.dim,
                                          sides_.columns + column * sides_.dim, sides_.dim);
    const double* ascending = values(row, begin_);
    ++above(row)[count_below(ascending, cells.count, exact, false)];
    ++at_least(row)[count_below(ascending, cells.count, exact, true)];
  }

  void end_part(int64_t begin, const Counts& result) {
    for (int64_t row = 0; row < live_; ++row) {
      const int64_t first = thresholds_.offsets[first_row_ + row] + begin;
      int64_t reached = 0, exceeded = 0;
      for (int64_t k = cells_[row].count; k > 0; --k) {
        reached += decided(row)[k] + at_least(row)[k];
        exceeded += decided(row)[k] + above(row)[k];
        result.at_least[first + k - 1] = reached;
        result.above[first + k - 1] = exceeded;
      }
    }
  }

  const ExactSides& sides_;
  const Thresholds& thresholds_;
  int64_t most_;  // thresholds of a row at a time
  double error_;
  float* panel_;     // (dim, PANEL)
  float* tiles_;     // (COLUMN_GROUP, PANEL, PANEL)
  float* bounds_;    // (PANEL, 2, most)
  uint16_t* below_;  // (PANEL, cells)
  int32_t* counts_;  // (3, PANEL, most + 1)
  Cells cells_[PANEL];
  int64_t first_row_ = 0, live_ = 0, begin_ = 0;
};

bool count_above(const ExactSides& sides, const Thresholds& thresholds, Arena& arena,
                 const Counts& counts) {
  Interruption interruption(sides.interrupted);
  int64_t most = 1;
  for (int64_t row = 0; row < sides.num_rows; ++row) {
    most = larger(most, thresholds.offsets[row + 1] - thresholds.offsets[row]);
  }
  most = smaller(most, Cells::MOST_THRESHOLDS);
  const int64_t row_panels = panels_of(sides.num_rows), panels = panels_of(sides.num_columns);
  float* columns = allocate<float>(arena, panels * PANEL * sides.dim);
  auto* rows = allocate<CountedRows>(arena, sides.threads);
  for (int thread = 0; thread < sides.threads; ++thread) {
    new (rows + thread) CountedRows(sides, thresholds, most, arena);
  }
#pragma omp parallel num_threads(sides.threads)
  {
#pragma omp for schedule(static)
    for (int64_t panel = 0; panel < panels; ++panel) {
      pack_counted(sides.columns + panel * PANEL * sides.dim,
                   smaller(PANEL, sides.num_columns - panel * PANEL), sides.dim,
                   columns + panel * PANEL * sides.dim);
    }
#pragma omp for schedule(dynamic)
    for (int64_t panel = 0; panel < row_panels; ++panel) {
      if (interruption.wanted()) continue;
      rows[thread_index()].count(panel, columns, counts, interruption);
    }
  }
  return !interruption.wanted();
}

}  // namespace
}  // namespace circle_kernels
