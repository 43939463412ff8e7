// Both passes for one instruction set: what a translation unit in kernels/ compiles.
//
// The unit defines CIRCLE_LEVEL (its namespace) and CIRCLE_VECTOR_BYTES. Code shared by all units
// (ordering, memory) is compiled once, without their flags, and called through plain functions.
#pragma once

#include "backward.h"
#include "forward.h"
#include "kernels.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace circle_kernels {
namespace {

int thread_index() {
#if defined(_OPENMP)
  return omp_get_thread_num();
#else
  return 0;
#endif
}

template <class T>
T* allocate(Arena& arena, int64_t count) {
  return static_cast<T*>(arena.allocate(static_cast<std::size_t>(count) * sizeof(T)));
}

// Panels of a tile chunk's edge: partial sums of a chunk (forward, 1.5 KB a tile) and its tiles of
// G (backward, 36 KB a tile) stay in the last-level cache.
constexpr int64_t FORWARD_CHUNK = 48, BACKWARD_CHUNK = 16;

template <class T>
Panels<T> make_panels(const Embeddings& side, const Ordering& ordering, Arena& arena) {
  const int64_t padded = panels_of(side.count) * PANEL;
  Panels<T> panels{side.count, side.dim, ordering.order.data(), nullptr, nullptr, nullptr};
  panels.values = allocate<T>(arena, padded * side.dim);
  panels.divisors = allocate<T>(arena, padded);
  if constexpr (sizeof(Int<T>) == sizeof(int32_t)) {
    panels.class_ids = ordering.class_ids.data();
  } else {
    Int<T>* class_ids = allocate<Int<T>>(arena, padded);
    for (int64_t row = 0; row < padded; ++row) class_ids[row] = ordering.class_ids[row];
    panels.class_ids = class_ids;
  }
  return panels;
}

template <class T>
void pack(const Problem& problem, const Embeddings& side, int64_t index, Panels<T>& panels) {
  if constexpr (sizeof(T) == sizeof(double)) {
    pack_panel<T, double>(side, problem.normalize, index, panels);
  } else if (problem.scalar == Scalar::float32) {
    pack_panel<T, float>(side, problem.normalize, index, panels);
  } else if (problem.scalar == Scalar::float16) {
    pack_panel<T, Half>(side, problem.normalize, index, panels);
  } else {
    pack_panel<T, BFloat>(side, problem.normalize, index, panels);
  }
}

template <class T>
void unpack(const Problem& problem, const Panels<T>& panels, int64_t index, T* gradient,
            void* output) {
  if constexpr (sizeof(T) == sizeof(double)) {
    unpack_gradient(panels, problem.normalize, index, gradient, static_cast<double*>(output));
  } else if (problem.scalar == Scalar::float32) {
    unpack_gradient(panels, problem.normalize, index, gradient, static_cast<float*>(output));
  } else if (problem.scalar == Scalar::float16) {
    unpack_gradient(panels, problem.normalize, index, gradient, static_cast<Half*>(output));
  } else {
    unpack_gradient(panels, problem.normalize, index, gradient, static_cast<BFloat*>(output));
  }
}

// Both sides of a problem in panels; in self mode one side, twice.
template <class T>
struct Operands {
  Panels<T> rows, columns;

  Operands(const Problem& problem, const Classes& classes, Arena& arena)
      : rows(make_panels<T>(problem.rows, classes.rows, arena)),
        columns(problem.self_mode ? rows
                                  : make_panels<T>(problem.columns, classes.columns, arena)) {}

  Tile<T> tile(const Problem& problem, int64_t row, int64_t column) const {
    return {rows, columns, row, column, problem.self_mode};
  }
};

// Called by every thread of a parallel region.
template <class T>
void pack_all(const Problem& problem, Operands<T>& operands) {
  const int64_t row_panels = operands.rows.panels();
  const int64_t column_panels = problem.self_mode ? 0 : operands.columns.panels();
#pragma omp for schedule(dynamic)
  for (int64_t panel = 0; panel < row_panels + column_panels; ++panel) {
    if (panel < row_panels) {
      pack(problem, problem.rows, panel, operands.rows);
    } else {
      pack(problem, problem.columns, panel - row_panels, operands.columns);
    }
  }
}

// Where the parts of SavedLayout lie. Without a backward pass to come, only the log-sum-exps have a
// place, in scratch memory.
template <class T>
struct Saved {
  int64_t kept_tiles;
  T* tiles;
  T* lse_pos;
  T* lse_neg;
  T* highest;  // null where skip_below cannot use it

  Saved(const Problem& problem, T* begin) {
    const SavedLayout layout(problem);
    kept_tiles = layout.kept_tiles;
    tiles = begin;
    lse_pos = begin + layout.kept_tiles * PANEL * PANEL;
    lse_neg = lse_pos + layout.statistics;
    highest = layout.highest > 0 ? lse_neg + layout.statistics : nullptr;
  }

  Saved(const Problem& problem, Arena& arena) : kept_tiles(0), tiles(nullptr), highest(nullptr) {
    const SavedLayout layout(problem);
    lse_pos = allocate<T>(arena, layout.statistics);
    lse_neg = allocate<T>(arena, layout.statistics);
  }

  // The place of a kept tile, or null.
  T* tile(int64_t index) const {
    return index < kept_tiles ? tiles + index * PANEL * PANEL : nullptr;
  }
};

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

template <class T, class Logits>
void forward_with(const Problem& problem, const Classes& classes, const Logits& logits,
                  Arena& arena, const ForwardResult& result) {
  Operands<T> operands(problem, classes, arena);
  const int64_t row_panels = operands.rows.panels(), column_panels = operands.columns.panels();
  const Saved<T> saved = result.saved != nullptr ? Saved<T>(problem, static_cast<T*>(result.saved))
                                                 : Saved<T>(problem, arena);

  const int64_t edge = FORWARD_CHUNK;
  const int64_t chunk_rows = edge < row_panels ? edge : row_panels;
  const int64_t chunk_columns = edge < column_panels ? edge : column_panels;
  auto* row_partials = allocate<TilePartial<T>>(arena, chunk_rows * chunk_columns);
  auto* column_partials =
      problem.self_mode ? allocate<TilePartial<T>>(arena, chunk_rows * chunk_columns) : nullptr;
  auto* totals = allocate<TilePartial<T>>(arena, row_panels);
  T* scratch = allocate<T>(arena, problem.threads * PANEL * PANEL);

#pragma omp parallel num_threads(problem.threads)
  {
#pragma omp for schedule(static) nowait
    for (int64_t panel = 0; panel < row_panels; ++panel) {
      for (PartialSums<T>* total : {&totals[panel].positive, &totals[panel].negative}) {
        set_all(total->shift, NO_SHIFT<T>);
        set_all(total->sum, T(0));
      }
    }
    pack_all(problem, operands);

    for_each_chunk(row_panels, column_panels, edge, problem.self_mode, [&](const Chunk& chunk) {
#pragma omp for schedule(dynamic)
      for (int64_t index = 0; index < chunk.size(); ++index) {
        const int64_t row = chunk.row(index), column = chunk.column(index);
        if (!chunk.visits(row, column)) continue;
        const Tile<T> tile = operands.tile(problem, row, column);
        const int64_t place = tile_index(row, column, column_panels, problem.self_mode);
        T* similarities = saved.tile(place);
        if (similarities == nullptr) similarities = scratch + thread_index() * PANEL * PANEL;
        similarity_tile(operands.rows.panel(row), operands.columns.panel(column), operands.rows.dim,
                        tile.live_rows(), tile.live_columns(), similarities);
        const int64_t slot = chunk.slot(row, column);
        tile_partials(tile, similarities, logits, row_partials[slot],
                      tile.mirrored() ? &column_partials[slot] : nullptr);
        if (saved.highest != nullptr) {
          saved.highest[place] =
              tile.only_negatives()
                  ? negative_range(logits, similarity_ranges<T, false>(tile, similarities).negative)
                        .highest
                  : INFINITE<T>;
        }
      }

      const auto add = [&](const TilePartial<T>& partial, int64_t panel) {
        merge(partial.negative, totals[panel].negative);
        if (partial.has_positives) merge(partial.positive, totals[panel].positive);
      };
      // In self mode a chunk beside the diagonal serves its columns' panels as well.
      const int64_t mirrored = problem.self_mode && !chunk.on_diagonal ? chunk.columns() : 0;
#pragma omp for schedule(dynamic)
      for (int64_t index = 0; index < chunk.rows() + mirrored; ++index) {
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

#pragma omp for schedule(static)
    for (int64_t panel = 0; panel < row_panels; ++panel) {
      const int64_t live = operands.rows.live(panel);
      finish(totals[panel].positive, live, saved.lse_pos + panel * PANEL);
      finish(totals[panel].negative, live, saved.lse_neg + panel * PANEL);
    }
  }

  poison(operands, arena, saved.lse_pos, saved.lse_neg);
  constexpr T LN_2 = T(0.69314718055994530942);
  for (int64_t row = 0; row < operands.rows.count; ++row) {
    const int64_t given = operands.rows.order[row];
    static_cast<T*>(result.lse_pos)[given] = saved.lse_pos[row] * LN_2;
    static_cast<T*>(result.lse_neg)[given] = saved.lse_neg[row] * LN_2;
  }
}

// One kind of pair's statistics, in panel order, from vectors in the order given.
template <class T>
RowStatistics<T> row_statistics(const Panels<T>& rows, T* lse, const T* gradient, double gamma,
                                Arena& arena) {
  RowStatistics<T> statistics{lse, allocate<T>(arena, rows.panels() * PANEL),
                              allocate<T>(arena, rows.panels())};
  for (int64_t panel = 0; panel < rows.panels(); ++panel) {
    T lowest = INFINITE<T>;
    for (int64_t row = panel * PANEL; row < (panel + 1) * PANEL; ++row) {
      const bool empty = row >= rows.count || lse[row] == -INFINITE<T>;
      statistics.gradient[row] =
          empty ? T(0) : static_cast<T>(gradient[rows.order[row]] * static_cast<T>(gamma));
      if (statistics.gradient[row] == 0) continue;
      // NaN: nothing is known of the distance, and the exact body carries it on.
      const T known = lse[row] == lse[row] ? lse[row] : -INFINITE<T>;
      if (known < lowest) lowest = known;
    }
    statistics.lowest[panel] = lowest;
  }
  return statistics;
}

template <class T>
bool has_nan(const RowStatistics<T>& statistics, int64_t rows) {
  for (int64_t row = 0; row < rows; ++row) {
    const T value = statistics.gradient[row], lse = statistics.lse[row];
    if (value != value || (value != 0 && lse != lse)) return true;
  }
  return false;
}

// The part of a panel of the gradient that one task computes.
struct DimRange {
  int64_t first, last;
};

template <class T, class Logits>
void backward_with(const Problem& problem, const Classes& classes, const Logits& logits,
                   Arena& arena, const BackwardInput& input, const Gradients& gradients) {
  Operands<T> operands(problem, classes, arena);
  const Panels<T>&rows = operands.rows, &columns = operands.columns;
  const int64_t row_panels = rows.panels(), column_panels = columns.panels(), dim = rows.dim;
  const Saved<T> saved(problem, static_cast<T*>(const_cast<void*>(input.saved)));
  const double gamma = problem.formula.gamma;
  const Statistics<T> statistics{
      row_statistics(rows, saved.lse_pos, static_cast<const T*>(input.grad_lse_pos), gamma, arena),
      row_statistics(rows, saved.lse_neg, static_cast<const T*>(input.grad_lse_neg), gamma, arena)};
  // Each pair may be dropped that has less than its equal part of what a row may lose.
  const bool skipping = problem.skip_below > 0 && !has_nan(statistics.positive, rows.count) &&
                        !has_nan(statistics.negative, rows.count);
  const T negligible = skipping ? static_cast<T>(problem.skip_below / columns.count) : T(0);
  const T log_negligible = skipping ? std::log2(negligible) : -INFINITE<T>;

  const int64_t edge = BACKWARD_CHUNK;
  const int64_t chunk_rows = edge < row_panels ? edge : row_panels;
  const int64_t chunk_columns = edge < column_panels ? edge : column_panels;
  T* tile_gradients = allocate<T>(arena, chunk_rows * chunk_columns * PANEL * PANEL);
  auto* shares = allocate<TileShare>(arena, chunk_rows * chunk_columns);
  T* row_gradient =
      gradients.rows != nullptr ? allocate<T>(arena, row_panels * dim * PANEL) : nullptr;
  T* column_gradient =
      gradients.columns != nullptr ? allocate<T>(arena, column_panels * dim * PANEL) : nullptr;
  T* scratch = allocate<T>(arena, problem.threads * PANEL * PANEL);
  const bool mirrored = problem.self_mode;

  // Whether nothing in a tile can have a gradient, so that it need not be computed.
  const auto negligible_tile = [&](int64_t row, int64_t column) {
    if (!statistics.active(row) && !(mirrored && statistics.active(column))) return true;
    if (!skipping) return false;
    const T highest = saved.highest[tile_index(row, column, column_panels, problem.self_mode)];
    T lowest = statistics.negative.lowest[row];
    if (mirrored) lowest = smaller(lowest, statistics.negative.lowest[column]);
    return highest - lowest < log_negligible;
  };

#pragma omp parallel num_threads(problem.threads)
  {
    T* own_scratch = scratch + thread_index() * PANEL * PANEL;
#pragma omp for schedule(static) nowait
    for (int64_t panel = 0; panel < row_panels + column_panels; ++panel) {
      T* gradient = panel < row_panels ? row_gradient : column_gradient;
      const int64_t index = panel < row_panels ? panel : panel - row_panels;
      if (gradient == nullptr) continue;
      std::memset(gradient + index * dim * PANEL, 0, dim * PANEL * sizeof(T));
    }
    pack_all(problem, operands);

    for_each_chunk(row_panels, column_panels, edge, problem.self_mode, [&](const Chunk& chunk) {
#pragma omp for schedule(dynamic)
      for (int64_t index = 0; index < chunk.size(); ++index) {
        const int64_t row = chunk.row(index), column = chunk.column(index);
        if (!chunk.visits(row, column)) continue;
        const int64_t slot = chunk.slot(row, column);
        if (negligible_tile(row, column)) {
          shares[slot].any = false;
          continue;
        }
        const Tile<T> tile = operands.tile(problem, row, column);
        T* gradient = tile_gradients + slot * PANEL * PANEL;
        const T* similarities =
            saved.tile(tile_index(row, column, column_panels, problem.self_mode));
        if (similarities == nullptr) {
          similarity_tile(rows.panel(row), columns.panel(column), dim, tile.live_rows(),
                          tile.live_columns(), own_scratch);
          similarities = own_scratch;
        }
        const auto run = [&](auto body) {
          body(tile, similarities, logits, statistics, negligible, gradient, shares[slot]);
        };
        if (mirrored) {
          skipping ? run(tile_gradient<T, true, true, Logits>)
                   : run(tile_gradient<T, true, false, Logits>);
        } else {
          skipping ? run(tile_gradient<T, false, true, Logits>)
                   : run(tile_gradient<T, false, false, Logits>);
        }
      }

      // One task for a panel of the gradient, or for half or a quarter of its values of d where
      // there are few panels for many threads.
      const bool other_side = mirrored ? !chunk.on_diagonal : column_gradient != nullptr;
      const int64_t row_outputs = row_gradient != nullptr ? chunk.rows() : 0;
      const int64_t outputs = row_outputs + (other_side ? chunk.columns() : 0);
      int64_t parts = 1;
      while (outputs * parts < 8 * problem.threads && dim / parts >= 64 && parts < 8) parts *= 2;
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < outputs * parts; ++task) {
        const int64_t output = task / parts, part = task % parts;
        const DimRange range{dim * part / parts, dim * (part + 1) / parts};
        if (output >= row_outputs) {
          const int64_t column = chunk.first_column + output - row_outputs;
          T* gradient = (mirrored ? row_gradient : column_gradient) + column * dim * PANEL;
          for (int64_t row = chunk.first_row; row < chunk.last_row; ++row) {
            const int64_t slot = chunk.slot(row, column);
            accumulate_tile(rows.panel(row), tile_gradients + slot * PANEL * PANEL, shares[slot],
                            false, rows.live(row), columns.live(column), range.first, range.last,
                            own_scratch, gradient);
          }
          continue;
        }
        const int64_t panel = chunk.first_row + output;
        T* gradient = row_gradient + panel * dim * PANEL;
        for (int64_t column = chunk.first_column; column < chunk.last_column; ++column) {
          const bool visited = chunk.visits(panel, column);
          const int64_t slot = visited ? chunk.slot(panel, column) : chunk.slot(column, panel);
          accumulate_tile(columns.panel(column), tile_gradients + slot * PANEL * PANEL,
                          shares[slot], visited, columns.live(column), rows.live(panel),
                          range.first, range.last, own_scratch, gradient);
        }
      }
    });

#pragma omp for schedule(dynamic)
    for (int64_t panel = 0; panel < row_panels + column_panels; ++panel) {
      if (panel < row_panels) {
        if (row_gradient == nullptr) continue;
        unpack(problem, rows, panel, row_gradient + panel * dim * PANEL, gradients.rows);
      } else if (column_gradient != nullptr) {
        const int64_t index = panel - row_panels;
        unpack(problem, columns, index, column_gradient + index * dim * PANEL, gradients.columns);
      }
    }
  }
}

// Calls `run` with the type computed in and the formula's logits.
template <class Run>
void with_logits(const Problem& problem, bool detach_weights, Run run) {
  const auto typed = [&](auto zero) {
    using T = decltype(zero);
    if (problem.formula.kind == FormulaKind::unified) {
      run(zero, UnifiedLogits<T>(problem.formula));
    } else if (detach_weights) {
      run(zero, CircleLogits<T, true>(problem.formula));
    } else {
      run(zero, CircleLogits<T, false>(problem.formula));
    }
  };
  if (problem.scalar == Scalar::float64) {
    typed(double{});
  } else {
    typed(float{});
  }
}

void forward(const Problem& problem, const Classes& classes, Arena& arena,
             const ForwardResult& result) {
  // Logits do not depend on detach_weights, so one version of them serves.
  with_logits(problem, true, [&](auto zero, const auto& logits) {
    forward_with<decltype(zero)>(problem, classes, logits, arena, result);
  });
}

void backward(const Problem& problem, const Classes& classes, Arena& arena,
              const BackwardInput& input, const Gradients& gradients) {
  with_logits(problem, problem.formula.detach_weights, [&](auto zero, const auto& logits) {
    backward_with<decltype(zero)>(problem, classes, logits, arena, input, gradients);
  });
}

}  // namespace

namespace CIRCLE_LEVEL {
extern const Kernels kernels;
const Kernels kernels{forward, backward};
}  // namespace CIRCLE_LEVEL

}  // namespace circle_kernels
