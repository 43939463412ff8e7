// Counts over all tiles: what each thread does when. tile_counts.h has what is done to a tile.
#pragma once

#include "kernels/counting/tile_counts.h"
#include "kernels/tiles/threads.h"

namespace circle_kernels {
namespace {

class CountPass {
 public:
  CountPass(const ExactSides& sides, const ThresholdCounts& counts, Arena& arena)
      : sides_(sides),
        counts_(counts),
        self_mode_(sides.rows == sides.columns && counts.rows == counts.columns),
        rows_(make_side(sides.rows, counts.rows, arena)),
        columns_(self_mode_ ? rows_ : make_side(sides.columns, counts.columns, arena)),
        plan_(rows_.panels.panels(), columns_.panels.panels(), sides.threads),
        thresholds_(counts, sides.dim, arena),
        row_counts_(counts, thresholds_, !self_mode_ && plan_.segments > 1 && sides.threads > 1),
        scratch_(allocate<CountScratch>(arena, sides.threads)),
        interruption_(sides.interrupted) {}

  // False where it was interrupted.
  bool run() {
    const int64_t row_panels = rows_.panels.panels();
#pragma omp parallel num_threads(sides_.threads)
    {
      pack(rows_);
      if (!self_mode_) pack(columns_);
#pragma omp for schedule(static)
      for (int64_t row = 0; row < counts_.rows; ++row) {
        thresholds_.prepare(row);
        const int64_t first = thresholds_.first(row), size = thresholds_.count(row);
        if (size == 0) continue;  // pointers to nothing are not for memset
        std::memset(counts_.at_least + first, 0, size * sizeof(int64_t));
        std::memset(counts_.above + first, 0, size * sizeof(int64_t));
      }
      self_mode_ ? visit_pairs(row_panels) : visit_rows(row_panels);
#pragma omp for schedule(static)
      for (int64_t row = 0; row < counts_.rows; ++row) row_counts_.finish(row);
    }
    return !interruption_.wanted();
  }

 private:
  struct Side {
    Embeddings given;
    Panels<float> panels;

    RowsOf rows(int64_t panel) const {
      const auto* values = static_cast<const double*>(given.values);
      return {values + panel * PANEL * given.dim, panels.live(panel), given.dim};
    }
  };

  // How panels are shared out among threads.
  struct Plan {
    int64_t edge;      // panels of rows that meet one panel of columns after the other
    int64_t segments;  // parts that columns are divided into, where rows are too few

    // Rows of a block stay in the second-level cache. Threads have several blocks each, so that
    // they end together.
    Plan(int64_t row_panels, int64_t column_panels, int64_t threads) {
      constexpr int64_t LONGEST = 4, BLOCKS = 8;
      edge = row_panels / (2 * BLOCKS * threads);
      edge = edge < 1 ? 1 : edge > LONGEST ? LONGEST : edge;
      const int64_t blocks = (row_panels + edge - 1) / edge;
      segments = blocks >= threads ? 1 : BLOCKS * threads;
      if (segments > column_panels) segments = column_panels;
      if (segments < 1) segments = 1;
    }
  };

  Side make_side(const double* values, int64_t count, Arena& arena) const {
    const int64_t dim = sides_.dim, padded = panels_of(count) * PANEL;
    return {{values, count, dim, dim, 1, nullptr, 0},
            {count, dim, nullptr, allocate<float>(arena, padded * dim),
             allocate<float>(arena, padded), nullptr, dim}};
  }

  // Called by every thread of the parallel region, as those that follow are.
  void pack(const Side& side) {
    constexpr int64_t PARTS = PANEL / PACKED_ROWS;
#pragma omp for schedule(static)
    for (int64_t task = 0; task < side.panels.panels() * PARTS; ++task) {
      if (interruption_.asked()) continue;
      const int64_t panel = task / PARTS, row = task % PARTS * PACKED_ROWS;
      for (int64_t at = row; at < row + PACKED_ROWS; ++at) {
        side.panels.divisors[panel * PANEL + at] = 1;
      }
      pack_rows<float, double>(side.given, panel, row, side.panels.dim, side.panels);
    }
  }

  // All columns for each row. A block of rows meets a part of the columns at a time.
  void visit_rows(int64_t row_panels) {
    const int64_t blocks = (row_panels + plan_.edge - 1) / plan_.edge;
    const int64_t segments = plan_.segments, columns = columns_.panels.panels();
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < blocks * segments; ++task) {
      const int64_t block = task / segments, segment = task % segments;
      visit({block * plan_.edge, segment * columns / segments, (segment + 1) * columns / segments});
    }
  }

  // Each pair once, for both of its rows. Blocks of panels meet as the teams of a tournament do, in
  // rounds in which each has one opponent: so no two threads add to the same row's counts.
  void visit_pairs(int64_t row_panels) {
    const int64_t edge = plan_.edge, blocks = (row_panels + edge - 1) / edge;
    const int64_t teams = blocks + blocks % 2, rounds = teams - 1;
#pragma omp for schedule(dynamic)
    for (int64_t block = 0; block < blocks; ++block) {
      visit({block * edge, block * edge, end_of(block)});
    }
    for (int64_t round = 0; round < rounds; ++round) {
#pragma omp for schedule(dynamic)
      for (int64_t match = 0; match < teams / 2; ++match) {
        const int64_t first = (round + match) % rounds;
        const int64_t second = match == 0 ? rounds : (round + rounds - match) % rounds;
        if (first >= blocks || second >= blocks) continue;
        visit({first * edge, second * edge, end_of(second)});
      }
    }
  }

  int64_t end_of(int64_t block) const {
    const int64_t end = (block + 1) * plan_.edge, panels = rows_.panels.panels();
    return end < panels ? end : panels;
  }

  // Panels of rows from the first on, up to Plan::edge, and of columns.
  struct Region {
    int64_t first_row, first_column, end_column;
  };

  void visit(const Region& region) {
    const int64_t end_row = end_of(region.first_row / plan_.edge);
    const bool on_diagonal = self_mode_ && region.first_row == region.first_column;
    for (int64_t column = region.first_column; column < region.end_column; ++column) {
      const int64_t end = on_diagonal ? column + 1 : end_row;
      for (int64_t row = region.first_row; row < end; ++row) {
        if (interruption_.asked()) return;
        count_tile(row, column, scratch_[thread_index()]);
      }
    }
  }

  void count_tile(int64_t row, int64_t column, CountScratch& scratch) const {
    const Panels<float>&rows = rows_.panels, &columns = columns_.panels;
    const bool mirrored = self_mode_ && row != column;
    const int64_t first_row = row * PANEL, first_column = column * PANEL;
    const bool of_rows = row_counts_.any(first_row, rows.live(row));
    const bool of_columns = mirrored && row_counts_.any(first_column, columns.live(column));
    if (counts_.counted != nullptr) {
      increase<true>(counts_.counted, (mirrored ? 2 : 1) * rows.live(row) * columns.live(column));
    }
    if (!of_rows && !of_columns) return;
    bounded_tile(rows.panel(row), columns.panel(column), sides_.dim, rows.live(row),
                 columns.live(column), scratch.tile);
    scratch.doubtful.count = scratch.doubtful_transposed.count = 0;
    if (of_rows) {
      row_counts_.add(scratch.tile, first_row, rows.live(row), scratch.candidates,
                      scratch.doubtful);
    }
    if (of_columns) {
      transpose(scratch.tile, rows.live(row), scratch.transposed);
      row_counts_.add(scratch.transposed, first_column, columns.live(column), scratch.candidates,
                      scratch.doubtful_transposed);
    }
    add_doubtful(row, column, scratch);
  }

  // (j, i) of (i, j), with NaN for rows that are padding.
  static void transpose(const float* tile, int64_t live_rows, float* transposed) {
    for (int64_t row = 0; row < PANEL; row += LANES<float>) {
      for (int64_t column = 0; column < PANEL; column += LANES<float>) {
        transpose_block(tile + row * PANEL + column, PANEL, transposed + column * PANEL + row,
                        PANEL);
      }
    }
    for (int64_t column = 0; column < PANEL && live_rows < PANEL; ++column) {
      for (int64_t row = live_rows; row < PANEL; ++row) {
        transposed[column * PANEL + row] = std::numeric_limits<float>::quiet_NaN();
      }
    }
  }

  void add_doubtful(int64_t row, int64_t column, CountScratch& scratch) const {
    // A pair by itself takes about as long as this many of a tile.
    constexpr int64_t SINGLE_PAIR = 4;
    const int64_t count = scratch.doubtful.count + scratch.doubtful_transposed.count;
    if (count == 0) return;
    const RowsOf rows = rows_.rows(row), columns = columns_.rows(column);
    if (count * SINGLE_PAIR <= rows.count * columns.count) {
      add_single(rows, columns, row * PANEL, scratch.doubtful);
      add_single(columns, rows, column * PANEL, scratch.doubtful_transposed);
      return;
    }
    scratch.exact.compute(rows, columns);
    add_from(scratch.exact.similarities, PANEL, 1, row * PANEL, scratch.doubtful);
    add_from(scratch.exact.similarities, 1, PANEL, column * PANEL, scratch.doubtful_transposed);
  }

  void add_single(const RowsOf& rows, const RowsOf& columns, int64_t first_row,
                  const Doubtful& doubtful) const {
    // Columns of pairs that are as far ahead are asked for: memory is what takes the time.
    constexpr int64_t AHEAD = 4, LINE = 64 / sizeof(double);
    for (int64_t index = 0; index < doubtful.count; ++index) {
      if (index + AHEAD < doubtful.count) {
        const Doubtful::Pair& next = doubtful.pairs[index + AHEAD];
        row_counts_.prefetch(first_row + next.row, next.last);
        const double* values = columns.row(next.column);
        for (int64_t d = 0; d < columns.dim; d += LINE) __builtin_prefetch(values + d);
      }
      const Doubtful::Pair& pair = doubtful.pairs[index];
      row_counts_.add(first_row + pair.row, pair.last,
                      exact_similarity(rows.row(pair.row), columns.row(pair.column), rows.dim));
    }
  }

  // From similarities of all pairs, between whose rows and columns lie so many numbers.
  void add_from(const double* similarities, int64_t row_stride, int64_t column_stride,
                int64_t first_row, const Doubtful& doubtful) const {
    for (int64_t index = 0; index < doubtful.count; ++index) {
      const Doubtful::Pair& pair = doubtful.pairs[index];
      row_counts_.add(first_row + pair.row, pair.last,
                      similarities[pair.row * row_stride + pair.column * column_stride]);
    }
  }

  const ExactSides& sides_;
  const ThresholdCounts& counts_;
  const bool self_mode_;
  const Side rows_, columns_;
  const Plan plan_;
  const Thresholds thresholds_;
  const RowCounts row_counts_;
  CountScratch* scratch_;
  Interruption interruption_;
};

bool count_above(const ExactSides& sides, const ThresholdCounts& counts, Arena& arena) {
  return CountPass(sides, counts, arena).run();
}

}  // namespace
}  // namespace circle_kernels
