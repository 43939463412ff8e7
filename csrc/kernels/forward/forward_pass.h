// The forward pass over all tiles: what each thread does when. tile_sums.h has what is done to a
// tile.
#pragma once

#include "kernels/forward/tile_sums.h"
#include "kernels/tiles/chunks.h"
#include "kernels/tiles/deep.h"
#include "kernels/tiles/operands.h"
#include "kernels/tiles/saved.h"

namespace circle_kernels {
namespace {

// Panels of a chunk's edge: the partial sums of its tiles (1.5 KB each) stay in the last-level
// cache.
constexpr int64_t FORWARD_CHUNK = 48;

// poison() where pairs are listed: whoever lists a pair saw both of its embeddings.
template <class T>
void poison_listed(const Operands<T>& operands, T* lse_pos, T* lse_neg) {
  const Panels<T>&rows = operands.rows, &columns = operands.columns;
  constexpr T NAN_VALUE = std::numeric_limits<T>::quiet_NaN();
  const auto broken = [](const T divisor) { return divisor != divisor; };
  const Problem& problem = operands.problem;
  for (int64_t row = 0; row < rows.count; ++row) {
    const uint8_t* listed = problem.listed + row * problem.listed_stride;
    for (int64_t column = 0; column < columns.count; ++column) {
      if (!broken(rows.divisors[row]) && !broken(columns.divisors[column])) continue;
      if (listed[column] & ROW_POSITIVE) lse_pos[row] = NAN_VALUE;
      if (listed[column] & ROW_NEGATIVE) lse_neg[row] = NAN_VALUE;
    }
  }
}

// A log-sum-exp that saw a row with a NaN or an infinity becomes NaN; an empty one stays -inf.
template <class T>
void poison(const Operands<T>& operands, Arena& arena, T* lse_pos, T* lse_neg) {
  const Panels<T>&rows = operands.rows, &columns = operands.columns;
  const auto broken = [](const Panels<T>& side, int64_t row) {
    return side.divisors[row] != side.divisors[row];
  };
  int64_t broken_rows = 0, broken_columns = 0;
  for (int64_t row = 0; row < rows.count; ++row) broken_rows += broken(rows, row);
  for (int64_t column = 0; column < columns.count; ++column) {
    broken_columns += broken(columns, column);
  }
  if (broken_rows + broken_columns == 0) return;
  if (operands.problem.listed != nullptr) {
    poison_listed(operands, lse_pos, lse_neg);
    return;
  }

  const auto last_class = [](const Panels<T>& side) { return side.class_ids[side.count - 1]; };
  const int64_t classes =
      1 + (last_class(rows) > last_class(columns) ? last_class(rows) : last_class(columns));
  int64_t* broken_of_class = allocate<int64_t>(arena, classes);
  for (int64_t index = 0; index < classes; ++index) broken_of_class[index] = 0;
  for (int64_t column = 0; column < columns.count; ++column) {
    broken_of_class[columns.class_ids[column]] += broken(columns, column);
  }
  for (int64_t row = 0; row < rows.count; ++row) {
    const bool itself = broken(rows, row);
    const int64_t positives = broken_of_class[rows.class_ids[row]];
    const int64_t negatives = broken_columns - positives;
    constexpr T NAN_VALUE = std::numeric_limits<T>::quiet_NaN();
    if ((itself || positives > 0) && lse_pos[row] != -INFINITE<T>) lse_pos[row] = NAN_VALUE;
    if ((itself || negatives > 0) && lse_neg[row] != -INFINITE<T>) lse_neg[row] = NAN_VALUE;
  }
}

// Both partials of one tile; `columns` is null unless the tile is mirrored. What is to be kept of
// the tile goes to `kept`, if that is not null: weights with the shifts returned, or similarities.
template <class T, class Logits>
TileShifts<T> tile_partials(const Tile<T>& tile, const T* similarities, const TileRanges<T>& ranges,
                            const Logits& logits, TilePartial<T>& rows, TilePartial<T>* columns,
                            T* kept) {
  const SharedShifts<T> shared = shared_shifts(ranges, logits);
  const bool weighing = kept != nullptr && shared.finite && shared.weighable;
  const auto sum = [&](auto body) {
    return body(tile, similarities, shared.shifts, logits, rows, columns, kept);
  };
  const bool exact =
      weighing ? sum(sum_tile<T, true, Logits>) : shared.finite && sum(sum_tile<T, false, Logits>);
  if (!exact) {
    // Classes are looked up pair by pair in a tile of negatives, too.
    const auto sum_exactly = [&](auto pairs) {
      constexpr Pairs P = decltype(pairs)::value;
      columns != nullptr ? sum_tile_exactly<T, P, true>(tile, similarities, logits, rows, columns)
                         : sum_tile_exactly<T, P, false>(tile, similarities, logits, rows, columns);
    };
    tile.listed != nullptr ? sum_exactly(PairsConstant<Pairs::listed>())
                           : sum_exactly(PairsConstant<Pairs::mixed>());
  }
  rows.has_positives = !tile.only_negatives();
  if (columns != nullptr) columns->has_positives = rows.has_positives;
  if (weighing && exact) return shared.shifts;
  if (kept != nullptr) std::memcpy(kept, similarities, PANEL * PANEL * sizeof(T));
  return TileShifts<T>::none();
}

// False where it was interrupted.
template <class T, class Logits>
bool forward_with(const Problem& problem, const Classes& classes, const BFloatProducts* products,
                  const Logits& logits, Arena& arena, const ForwardResult& result) {
  const bool self_mode = problem.self_mode;
  const int64_t row_panels = panels_of(problem.rows.count);
  const int64_t column_panels = panels_of(problem.columns.count);
  const Saved<T> saved = result.saved != nullptr ? Saved<T>(problem, static_cast<T*>(result.saved))
                                                 : Saved<T>(problem, arena);

  const int64_t edge = FORWARD_CHUNK;
  const int64_t chunk_rows = edge < row_panels ? edge : row_panels;
  const int64_t chunk_columns = edge < column_panels ? edge : column_panels;
  Operands<T> operands(problem, classes, products, chunk_columns, arena);
  DeepProducts<T> deep_products(operands, problem.threads, arena);
  auto* row_partials = allocate<TilePartial<T>>(arena, chunk_rows * chunk_columns);
  auto* column_partials =
      self_mode ? allocate<TilePartial<T>>(arena, chunk_rows * chunk_columns) : nullptr;
  auto* totals = allocate<TilePartial<T>>(arena, row_panels);
  T* scratch = allocate<T>(arena, problem.threads * PANEL * PANEL);
  T *lse_pos = static_cast<T*>(result.lse_pos), *lse_neg = static_cast<T*>(result.lse_neg);
  const Nats nats = nats_per_logit(logits, problem.formula);

#pragma omp parallel num_threads(problem.threads)
  {
    operands.begin();
#pragma omp for schedule(static) nowait
    for (int64_t panel = 0; panel < row_panels; ++panel) {
      for (PartialSums<T>* total : {&totals[panel].positive, &totals[panel].negative}) {
        set_all(total->shift, NO_SHIFT<T>);
        set_all(total->sum, T(0));
      }
    }
    operands.pack_rows();

    for_each_chunk(row_panels, column_panels, edge, edge, self_mode, [&](const Chunk& chunk) {
      if (operands.ended()) return;
      operands.pack_columns(chunk);
      if (operands.deep) deep_products.multiply();
#pragma omp for schedule(dynamic)
      for (int64_t index = 0; index < chunk.size(); ++index) {
        if (operands.interrupted()) continue;
        const int64_t row = chunk.row(index), column = chunk.column(index);
        if (!chunk.visits(row, column)) continue;
        const Tile<T> tile = operands.tile(row, column);
        const int64_t place = tile_index(row, column, column_panels, self_mode);
        const bool keeps_weights = saved.keeps_weights(place);
        T* kept = saved.tile(place);
        T* similarities =
            kept != nullptr && !keeps_weights ? kept : scratch + thread_index() * PANEL * PANEL;
        const TileRanges<T> ranges = operands.multiply_with_ranges(tile, similarities);
        const int64_t slot = chunk.slot(row, column);
        const TileShifts<T> shifts = tile_partials(
            tile, similarities, ranges, logits, row_partials[slot],
            tile.mirrored() ? &column_partials[slot] : nullptr, keeps_weights ? kept : nullptr);
        if (keeps_weights) saved.shifts[place] = shifts;
        if (saved.highest != nullptr) {
          saved.highest[place] =
              tile.only_negatives() ? negative_range(logits, ranges.negative).highest : INFINITE<T>;
        }
      }

      const auto add = [&](const TilePartial<T>& partial, int64_t panel) {
        merge(partial.negative, totals[panel].negative);
        if (partial.has_positives) merge(partial.positive, totals[panel].positive);
      };
      // In self mode a chunk beside the diagonal serves its columns' panels as well.
      const int64_t mirrored = self_mode && !chunk.on_diagonal ? chunk.columns() : 0;
      operands.agree();
#pragma omp for schedule(dynamic)
      for (int64_t index = 0; index < chunk.rows() + mirrored; ++index) {
        if (operands.end_wanted()) continue;
        if (index >= chunk.rows()) {
          const int64_t column = chunk.first_column + index - chunk.rows();
          for (int64_t row = chunk.first_row; row < chunk.last_row; ++row) {
            add(column_partials[chunk.slot(row, column)], column);
          }
          continue;
        }
        const int64_t panel = chunk.first_row + index;
        for (int64_t column = chunk.first_column; column < chunk.last_column; ++column) {
          if (chunk.visits(panel, column)) {
            add(row_partials[chunk.slot(panel, column)], panel);
          } else {
            add(column_partials[chunk.slot(column, panel)], panel);
          }
        }
      }
    });

    finish_streaming();
    operands.end();
#pragma omp for schedule(static)
    for (int64_t panel = 0; panel < row_panels; ++panel) {
      write_logsumexps(totals[panel].positive, operands.rows, panel, nats.positive,
                       saved.lse_pos + panel * PANEL, lse_pos);
      write_logsumexps(totals[panel].negative, operands.rows, panel, nats.negative,
                       saved.lse_neg + panel * PANEL, lse_neg);
    }
  }

  if (operands.end_wanted()) return false;
  poison(operands, arena, saved.lse_pos, saved.lse_neg);
  for (int64_t row = 0; row < operands.rows.count; ++row) {
    const int64_t caller_row = operands.rows.caller_row(row);
    if (saved.lse_pos[row] != saved.lse_pos[row]) lse_pos[caller_row] = saved.lse_pos[row];
    if (saved.lse_neg[row] != saved.lse_neg[row]) lse_neg[caller_row] = saved.lse_neg[row];
  }
  return true;
}

}  // namespace
}  // namespace circle_kernels
