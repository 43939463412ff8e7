// The forward pass over all tiles: what each thread does when. tile_sums.h has what is done to a
// tile.
#pragma once

#include "kernels/forward/poison.h"
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

// Both partials of one tile; `columns` is null unless they count its pairs. What is to be kept of
// the tile goes to `kept`, if that is not null: weights with the shifts returned, or similarities.
// Slopes are there once `fill_slopes` was called.
template <class T, class Logits, class FillSlopes>
TileShifts<T> tile_partials(const Tile<T>& tile, const T* similarities,
                            const TileLogits<T, Logits>& logits, FillSlopes fill_slopes,
                            TilePartial<T>& rows, TilePartial<T>* columns, T* kept) {
  const SharedShifts<T> shared = shared_shifts(logits.positive, logits.negative);
  const bool weighing = kept != nullptr && shared.finite && shared.weighable;
  if (weighing) fill_slopes();
  const auto sum = [&](auto body) {
    return body(tile, similarities, shared.shifts, logits.of_pair, rows, columns, kept);
  };
  const bool exact =
      weighing ? sum(sum_tile<T, true, Logits>) : shared.finite && sum(sum_tile<T, false, Logits>);
  if (!exact) {
    // Classes are looked up pair by pair in a tile of negatives, too.
    const auto sum_exactly = [&](auto pairs) {
      constexpr Pairs P = decltype(pairs)::value;
      const auto run = [&](auto body) { body(tile, similarities, logits.of_pair, rows, columns); };
      columns != nullptr ? run(sum_tile_exactly<T, P, true, Logits>)
                         : run(sum_tile_exactly<T, P, false, Logits>);
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
  const bool self_mode = problem.self_mode, both_sides = problem.both_sides;
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
  auto* column_partials = self_mode || both_sides
                              ? allocate<TilePartial<T>>(arena, chunk_rows * chunk_columns)
                              : nullptr;
  // Of rows, and after them of columns that count pairs for themselves.
  const int64_t total_panels = row_panels + (both_sides ? column_panels : 0);
  auto* totals = allocate<TilePartial<T>>(arena, total_panels);
  TilePartial<T>* column_totals = both_sides ? totals + row_panels : totals;
  T* scratch = allocate<T>(arena, problem.threads * PANEL * PANEL);
  const int64_t logit_size = logit_scratch_size(logits);
  T* logit_scratch = allocate<T>(arena, problem.threads * logit_size);
  T *lse_pos = static_cast<T*>(result.lse_pos), *lse_neg = static_cast<T*>(result.lse_neg);
  const Nats nats = nats_per_logit(logits, problem.formula);

#pragma omp parallel num_threads(problem.threads)
  {
    operands.begin();
#pragma omp for schedule(static) nowait
    for (int64_t panel = 0; panel < total_panels; ++panel) {
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
        T* of_logits = logit_scratch + thread_index() * logit_size;
        const auto tile_logits = logits_of_tile(logits, tile, similarities, ranges, of_logits);
        const TileShifts<T> shifts = tile_partials(
            tile, similarities, tile_logits,
            [&] { slopes_of_tile(logits, tile, similarities, of_logits); }, row_partials[slot],
            both_sides || tile.mirrored() ? &column_partials[slot] : nullptr,
            keeps_weights ? kept : nullptr);
        if (keeps_weights) saved.shifts[place] = shifts;
        if (saved.highest != nullptr) {
          saved.highest[place] = tile.only_negatives() ? tile_logits.negative.highest : INFINITE<T>;
        }
      }

      const auto add = [&](const TilePartial<T>& partial, TilePartial<T>& total) {
        merge(partial.negative, total.negative);
        if (partial.has_positives) merge(partial.positive, total.positive);
      };
      // In self mode a chunk beside the diagonal serves its columns' panels as well.
      const bool for_columns = both_sides || (self_mode && !chunk.on_diagonal);
      operands.agree();
#pragma omp for schedule(dynamic)
      for (int64_t index = 0; index < chunk.rows() + (for_columns ? chunk.columns() : 0); ++index) {
        if (operands.end_wanted()) continue;
        if (index >= chunk.rows()) {
          const int64_t column = chunk.first_column + index - chunk.rows();
          for (int64_t row = chunk.first_row; row < chunk.last_row; ++row) {
            add(column_partials[chunk.slot(row, column)], column_totals[column]);
          }
          continue;
        }
        const int64_t panel = chunk.first_row + index;
        for (int64_t column = chunk.first_column; column < chunk.last_column; ++column) {
          if (chunk.visits(panel, column)) {
            add(row_partials[chunk.slot(panel, column)], totals[panel]);
          } else {
            add(column_partials[chunk.slot(column, panel)], totals[panel]);
          }
        }
      }
    });

    finish_streaming();
    operands.end();
#pragma omp for schedule(static)
    for (int64_t index = 0; index < total_panels; ++index) {
      const bool of_rows = index < row_panels;
      const Panels<T>& side = of_rows ? operands.rows : operands.columns;
      const LogSumExps<T>& sums = of_rows ? saved.rows : saved.columns;
      const int64_t panel = of_rows ? index : index - row_panels;
      const int64_t first = of_rows ? 0 : problem.rows.count;
      write_logsumexps(totals[index].positive, side, panel, nats.positive,
                       sums.positive + panel * PANEL, lse_pos + first);
      write_logsumexps(totals[index].negative, side, panel, nats.negative,
                       sums.negative + panel * PANEL, lse_neg + first);
    }
  }

  if (operands.end_wanted()) return false;
  poison(operands, arena, saved);
  const auto hand_on = [&](const Panels<T>& side, const LogSumExps<T>& sums, int64_t first) {
    hand_on_specials<T, Logits::EVALUATED>(side, sums.positive, lse_pos + first);
    hand_on_specials<T, Logits::EVALUATED>(side, sums.negative, lse_neg + first);
  };
  hand_on(operands.rows, saved.rows, 0);
  if (both_sides) hand_on(operands.columns, saved.columns, problem.rows.count);
  return true;
}

}  // namespace
}  // namespace circle_kernels
