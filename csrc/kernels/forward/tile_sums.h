// The forward pass: both log-sum-exps of every row, from tiles that are never all in memory.
//
// A tile's sums are taken relative to one value for the whole tile, so that one exponential per
// pair serves the tile's rows and, where they count pairs, its columns. Where that would lose a row
// or a column whose logits lie far below the tile's highest, the tile is summed again, exactly.
// Partial sums of a chunk of tiles are then merged in a fixed order: results do not depend on the
// number of threads.
#pragma once

#include "common/memory.h"
#include "kernels/tiles/saved.h"
#include "kernels/tiles/tile_logits.h"
#include "kernels/vectors/exp2.h"

namespace circle_kernels {
namespace {

// sum_j 2^(z_j - shift) over one kind of pair.
template <class T>
struct PartialSums {
  alignas(64) T shift[PANEL];
  alignas(64) T sum[PANEL];
};

// What one tile gives to its rows, or to its columns.
template <class T>
struct TilePartial {
  PartialSums<T> positive, negative;
  bool has_positives;
};

template <class T>
constexpr T NO_SHIFT = -std::numeric_limits<T>::max();  // of an empty sum

// Below this, 2^-FARTHEST, a sum may have lost terms to the lower end of exp2's range, 36 octaves
// away.
template <class T>
constexpr T SMALLEST_SUM = sizeof(T) == sizeof(float) ? T(0x1p-90) : T(0x1p-940);

// Relative to the highest logit sums are most precise. A wide spread is worth some of that: raising
// the exponentials towards the end of the exponent range makes room below.
template <class T>
T shift_of(const LogitRange<T>& range) {
  constexpr T ROOM_BELOW = Exp2<T>::HIGHEST * T(0.65), ROOM_ABOVE = Exp2<T>::HIGHEST / 2;
  const T excess = range.spread - ROOM_BELOW;
  return range.highest - (excess > 0 ? (excess < ROOM_ABOVE ? excess : ROOM_ABOVE) : T(0));
}

// The shifts of a tile, and whether with them weights (saved.h) are as good as similarities: no
// exponential reaches the end of the range, and no row's factor lies far above 1.
template <class T>
struct SharedShifts {
  TileShifts<T> shifts;
  bool finite, weighable;
};

template <class T>
SharedShifts<T> shared_shifts(const LogitRange<T>& positive, const LogitRange<T>& negative) {
  const TileShifts<T> shifts{shift_of(positive), shift_of(negative)};
  return {shifts, shifts.positive - shifts.positive == 0 && shifts.negative - shifts.negative == 0,
          shifts.positive - (positive.highest - positive.spread) <= FARTHEST<T> &&
              shifts.negative - (negative.highest - negative.spread) <= FARTHEST<T>};
}

template <class T>
void set_all(T (&values)[PANEL], T value) {
  for (T& each : values) each = value;
}

// Whether every sum is empty or large enough to have lost nothing. False for NaN.
template <class T>
bool all_kept(const T (&sums)[PANEL]) {
  bool kept = true;
  for (const T each : sums) kept &= each == 0 || each >= SMALLEST_SUM<T>;
  return kept;
}

// An empty sum must not raise the shift that it is merged with.
template <class T>
void mark_empty(PartialSums<T>& partial) {
  for (int64_t row = 0; row < PANEL; ++row) {
    if (partial.sum[row] == 0) partial.shift[row] = NO_SHIFT<T>;
  }
}

// Sums of a tile relative to one shift for each kind of pair; false where that is not exact. With
// `weighing` also the tile's weights, and then exponentials lie inside exp2's range.
//
// Logits are copied: through a reference, every store might have changed them.
template <class T, Pairs pairs, bool for_columns, bool weighing, class Logits>
bool sum_tile(const Tile<T>& tile, const T* similarities, const TileShifts<T>& shifts,
              Logits logits, TilePartial<T>& rows, TilePartial<T>* columns, T* weights) {
  constexpr bool mixed = pairs != Pairs::negative;
  Vec<T> column_negative[PANEL_VECTORS<T>] = {}, column_positive[PANEL_VECTORS<T>] = {};
  const int64_t live = tile.live_rows();
  for (int64_t row = 0; row < live; ++row) {
    Vec<T> row_negative{}, row_positive{};
    CIRCLE_UNROLL_PAIRS
    for (int vector = 0; vector < PANEL_VECTORS<T>; ++vector) {
      const int64_t at = row * PANEL + vector * LANES<T>;
      const Vec<T> similarity = load(similarities + at);
      if constexpr (mixed) {
        const PairMasks<T> masks = pair_masks<T, pairs>(tile, row, vector * LANES<T>);
        const Vec<T> exponential = exp2<T, !weighing>(
            select<T>(masks.positive, logits.positive(similarity, at) - shifts.positive,
                      logits.negative(similarity, at) - shifts.negative));
        const auto counted = [&](Vec<Int<T>> mask) {
          return select<T>(mask, exponential, Vec<T>{});
        };
        row_positive += counted(masks.row_positive);
        row_negative += counted(masks.row_negative);
        if constexpr (for_columns) {
          column_positive[vector] += counted(masks.column_positive);
          column_negative[vector] += counted(masks.column_negative);
        }
        if constexpr (weighing) {
          const Vec<T> positive_slope = logits.positive_slope(similarity, at);
          const Vec<T> negative_slope = logits.negative_slope(similarity, at);
          if constexpr (Logits::EVALUATED) {
            // Of the other kind a slope may be infinite.
            const Vec<T> slope = select<T>(masks.positive, positive_slope, negative_slope);
            stream(weights + at,
                   select<T>(masks.positive | masks.negative, exponential * slope, Vec<T>{}));
          } else {
            stream(weights + at, counted(masks.positive) * positive_slope +
                                     counted(masks.negative) * negative_slope);
          }
        }
      } else {
        const Vec<T> exponential =
            exp2<T, !weighing>(logits.negative(similarity, at) - shifts.negative);
        row_negative += exponential;
        if constexpr (for_columns) column_negative[vector] += exponential;
        if constexpr (weighing) {
          stream(weights + at, exponential * logits.negative_slope(similarity, at));
        }
      }
    }
    rows.negative.sum[row] = sum<T>(row_negative);
    if constexpr (mixed) rows.positive.sum[row] = sum<T>(row_positive);
  }
  for (int64_t row = live; row < PANEL; ++row) rows.negative.sum[row] = rows.positive.sum[row] = 0;
  // Products may take a tile as a whole.
  if (weighing) std::memset(weights + live * PANEL, 0, (PANEL - live) * PANEL * sizeof(T));

  bool kept = true;
  const auto finish_sums = [&](PartialSums<T>& partial, T shift) {
    set_all(partial.shift, shift);
    kept &= all_kept(partial.sum);
    if constexpr (mixed) mark_empty(partial);
  };
  finish_sums(rows.negative, shifts.negative);
  if constexpr (mixed) finish_sums(rows.positive, shifts.positive);
  if constexpr (for_columns) {
    std::memcpy(columns->negative.sum, column_negative, sizeof column_negative);
    finish_sums(columns->negative, shifts.negative);
    if constexpr (mixed) {
      std::memcpy(columns->positive.sum, column_positive, sizeof column_positive);
      finish_sums(columns->positive, shifts.positive);
    }
  }
  return kept;
}

// Sums of a tile relative to each row's and each column's own highest logit: exact whatever the
// range, at one exponential more per pair where columns count pairs.
template <class T, Pairs pairs, bool for_columns, class Logits>
void sum_tile_exactly(const Tile<T>& tile, const T* similarities, const Logits& logits,
                      TilePartial<T>& rows, TilePartial<T>* columns) {
  const int64_t live = tile.live_rows();
  const auto logit = [&](int64_t row, int vector, const PairMasks<T>& masks) {
    const int64_t at = row * PANEL + vector * LANES<T>;
    const Vec<T> similarity = load(similarities + at);
    return select<T>(masks.positive, logits.positive(similarity, at),
                     logits.negative(similarity, at));
  };
  const auto only = [](Vec<Int<T>> mask, Vec<T> value, T otherwise) {
    return select<T>(mask, value, splat(otherwise));
  };

  Vec<T> highest_positive[PANEL_VECTORS<T>], highest_negative[PANEL_VECTORS<T>];
  for (int vector = 0; vector < PANEL_VECTORS<T>; ++vector) {
    highest_positive[vector] = highest_negative[vector] = splat(NO_SHIFT<T>);
  }
  for (int64_t row = 0; row < PANEL; ++row) {
    Vec<T> row_positive = splat(NO_SHIFT<T>), row_negative = row_positive;
    Vec<T> sum_positive{}, sum_negative{};
    if (row < live) {
      for (int vector = 0; vector < PANEL_VECTORS<T>; ++vector) {
        const PairMasks<T> masks = pair_masks<T, pairs>(tile, row, vector * LANES<T>);
        const Vec<T> value = logit(row, vector, masks);
        const auto raise = [&](Vec<Int<T>> mask, Vec<T>& highest) {
          highest = at_least(only(mask, value, NO_SHIFT<T>), highest);
        };
        raise(masks.row_positive, row_positive);
        raise(masks.row_negative, row_negative);
        raise(masks.column_positive, highest_positive[vector]);
        raise(masks.column_negative, highest_negative[vector]);
      }
      const T shift_positive = largest<T>(row_positive), shift_negative = largest<T>(row_negative);
      for (int vector = 0; vector < PANEL_VECTORS<T>; ++vector) {
        const PairMasks<T> masks = pair_masks<T, pairs>(tile, row, vector * LANES<T>);
        const Vec<T> value = logit(row, vector, masks);
        sum_positive += only(masks.row_positive, exp2<T>(value - shift_positive), 0);
        sum_negative += only(masks.row_negative, exp2<T>(value - shift_negative), 0);
      }
      rows.positive.shift[row] = shift_positive;
      rows.negative.shift[row] = shift_negative;
    }
    rows.positive.sum[row] = sum<T>(sum_positive);
    rows.negative.sum[row] = sum<T>(sum_negative);
  }
  mark_empty(rows.positive);
  mark_empty(rows.negative);
  if constexpr (for_columns) {
    for (int vector = 0; vector < PANEL_VECTORS<T>; ++vector) {
      Vec<T> sum_positive{}, sum_negative{};
      for (int64_t row = 0; row < live; ++row) {
        const PairMasks<T> masks = pair_masks<T, pairs>(tile, row, vector * LANES<T>);
        const Vec<T> value = logit(row, vector, masks);
        sum_positive += only(masks.column_positive, exp2<T>(value - highest_positive[vector]), 0);
        sum_negative += only(masks.column_negative, exp2<T>(value - highest_negative[vector]), 0);
      }
      store(columns->positive.shift + vector * LANES<T>, highest_positive[vector]);
      store(columns->negative.shift + vector * LANES<T>, highest_negative[vector]);
      store(columns->positive.sum + vector * LANES<T>, sum_positive);
      store(columns->negative.sum + vector * LANES<T>, sum_negative);
    }
    mark_empty(columns->positive);
    mark_empty(columns->negative);
  }
}

// Chooses the body of sum_tile that a tile needs; `columns` is null unless they count its pairs.
template <class T, bool weighing, class Logits>
bool sum_tile(const Tile<T>& tile, const T* similarities, const TileShifts<T>& shifts,
              const Logits& logits, TilePartial<T>& rows, TilePartial<T>* columns, T* weights) {
  const auto run = [&](auto body) {
    return body(tile, similarities, shifts, logits, rows, columns, weights);
  };
  return with_pairs(tile, [&](auto pairs) {
    constexpr Pairs P = decltype(pairs)::value;
    return columns != nullptr ? run(sum_tile<T, P, true, weighing, Logits>)
                              : run(sum_tile<T, P, false, weighing, Logits>);
  });
}

// total += partial, whatever their shifts.
template <class T>
void merge(const PartialSums<T>& partial, PartialSums<T>& total) {
  // As exp2, but 0 far below: a sum may itself be small.
  const auto scale = [](Vec<T> exponent) {
    return select<T>(exponent < Exp2<T>::LOWEST, Vec<T>{}, exp2<T>(exponent));
  };
  for (int64_t row = 0; row < PANEL; row += LANES<T>) {
    const Vec<T> old_shift = load(total.shift + row), new_shift = load(partial.shift + row);
    const Vec<T> shift = at_least(old_shift, new_shift);
    store(total.sum + row, load(total.sum + row) * scale(old_shift - shift) +
                               load(partial.sum + row) * scale(new_shift - shift));
    store(total.shift + row, shift);
  }
}

// A panel's log-sum-exps, -inf for an empty sum: in base 2 for the backward pass, in panel order,
// and natural ones as the caller wants them, in the order given; `nats` is nats_per_logit().
//
// In double: near 0 they are a difference of two numbers of the size of the shift.
template <class T>
void write_logsumexps(const PartialSums<T>& total, const Panels<T>& rows, int64_t panel,
                      double nats,
                      T* base_2,     // (PANEL,)
                      T* natural) {  // (rows.count,)
  for (int64_t row = 0; row < PANEL; ++row) {
    const bool live = row < rows.live(panel), empty = !live || total.sum[row] == 0;
    const double shift = total.shift[row], sum = std::log2(double{total.sum[row]});
    base_2[row] = empty ? -INFINITE<T> : static_cast<T>(shift + sum);
    if (!live) continue;
    natural[rows.caller_row(panel * PANEL + row)] =
        empty ? -INFINITE<T> : static_cast<T>(shift * nats + sum * LN_2);
  }
}

}  // namespace
}  // namespace circle_kernels
