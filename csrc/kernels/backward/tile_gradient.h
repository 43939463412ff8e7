// The backward pass: gradients from recomputed (or kept) tiles.
//
// A chunk of tiles at a time, G = dL/ds is computed into a bounded buffer, in self mode G + G^T,
// since there s_ij and s_ji are one number. Then each panel of the gradient takes what the chunk
// has for it: nobody else writes that panel, so there are no atomics, and the order of its sums is
// fixed.
#pragma once

#include "common/memory.h"
#include "kernels/backward/statistics.h"
#include "kernels/products/gradient_product.h"
#include "kernels/tiles/saved.h"
#include "kernels/tiles/tiles.h"
#include "kernels/vectors/exp2.h"

namespace circle_kernels {
namespace {

// 2^(shift - lse) times the upstream gradient, for the rows or the columns of a tile: what one
// exponential 2^(z - shift) has to be multiplied by. And without the gradient: the pair's share.
template <class T>
struct Factors {
  alignas(64) T gradient[PANEL];
  alignas(64) T share[PANEL];
};

template <class T>
void fill_factors(const RowStatistics<T>& statistics, int64_t panel, T shift, Factors<T>& factors) {
  for (int64_t row = 0; row < PANEL; row += LANES<T>) {
    const Vec<T> gradient = load(statistics.gradient + panel * PANEL + row);
    const Vec<T> lse = load(statistics.lse + panel * PANEL + row);
    // Only a row without such a pair in the tile can lie further below; its factor must be finite.
    const Vec<T> distance = at_most(splat(FARTHEST<T> + 1), shift - lse);
    const Vec<T> share = select<T>(gradient == 0, Vec<T>{}, exp2<T>(distance));
    store(factors.share + row, share);
    store(factors.gradient + row, share * gradient);
  }
}

// The shift with which one exponential serves every row of a tile: exponentials and factors stay
// inside the exponent's range, and what falls out of it is no more than 2^-56 of a row's weight.
template <class T>
struct SharedShift {
  T shift;
  bool possible;
};

template <class T>
SharedShift<T> shared_shift(T highest, T lowest_lse) {
  constexpr T ROOM = Exp2<T>::HIGHEST / 2;
  const T distance = highest - lowest_lse;
  // No row has a gradient (the distance is -inf): any shift will do.
  if (distance <= ROOM) return {highest, true};
  if (distance <= 2 * ROOM) return {highest - ROOM, true};
  return {0, false};
}

template <class T>
T smaller(T a, T b) {
  return a < b ? a : b;
}

// G of one tile, in self mode G + G^T, from the weights that the forward pass kept; transposed if
// that is how it will be multiplied.
template <class T, Pairs pairs, bool columns_too, bool transposed>
void scale_weights(const Tile<T>& tile, const T* weights, const Statistics<T>& statistics,
                   const TileShifts<T>& shifts, T* gradient) {
  constexpr bool mixed = pairs != Pairs::negative;
  Factors<T> row_negative, row_positive, column_negative, column_positive;
  fill_factors(statistics.negative, tile.row, shifts.negative, row_negative);
  if constexpr (mixed) fill_factors(statistics.positive, tile.row, shifts.positive, row_positive);
  if constexpr (columns_too) {
    fill_factors(statistics.negative, tile.column, shifts.negative, column_negative);
    if constexpr (mixed) {
      fill_factors(statistics.positive, tile.column, shifts.positive, column_positive);
    }
  }
  for (int64_t first_row = 0; first_row < PANEL; first_row += LANES<T>) {
    for (int64_t column = 0; column < PANEL; column += LANES<T>) {
      Vec<T> block[LANES<T>];
      CIRCLE_UNROLL
      for (int lane = 0; lane < LANES<T>; ++lane) {
        const int64_t row = first_row + lane;
        Vec<T> factor = splat(row_negative.gradient[row]);
        const Vec<T> weight = load(weights + row * PANEL + column);
        __builtin_prefetch(weights + (row + LANES<T>)*PANEL + column);
        if constexpr (pairs == Pairs::listed) {
          const PairMasks<T> masks = pair_masks<T, pairs>(tile, row, column);
          const auto of_side = [&](Vec<Int<T>> positive, Vec<T> factor_positive,
                                   Vec<Int<T>> negative, Vec<T> factor_negative) {
            return select<T>(positive, factor_positive,
                             select<T>(negative, factor_negative, Vec<T>{}));
          };
          factor = of_side(masks.row_positive, splat(row_positive.gradient[row]),
                           masks.row_negative, factor);
          if constexpr (columns_too) {
            factor += of_side(masks.column_positive, load(column_positive.gradient + column),
                              masks.column_negative, load(column_negative.gradient + column));
          }
          block[lane] = weight * factor;
          continue;
        }
        if constexpr (columns_too) factor += load(column_negative.gradient + column);
        if constexpr (!mixed) {
          block[lane] = weight * factor;
          continue;
        }
        Vec<T> factor_positive = splat(row_positive.gradient[row]);
        if constexpr (columns_too) factor_positive += load(column_positive.gradient + column);
        const PairMasks<T> masks = pair_masks<T, pairs>(tile, row, column);
        block[lane] =
            select<T>(masks.positive | masks.negative,
                      weight * select<T>(masks.positive, factor_positive, factor), Vec<T>{});
      }
      if constexpr (transposed) exchange_all<T, 1>(block);
      T* to = transposed ? gradient + column * PANEL + first_row
                         : gradient + first_row * PANEL + column;
      CIRCLE_UNROLL
      for (int lane = 0; lane < LANES<T>; ++lane) store(to + lane * PANEL, block[lane]);
    }
  }
}

// Chooses the body that a tile needs.
template <class T>
void scale_weights(const Tile<T>& tile, const T* weights, const Statistics<T>& statistics,
                   const TileShifts<T>& shifts, bool transposed, T* gradient) {
  const auto choose = [&](auto pairs, auto columns_too) {
    constexpr Pairs P = decltype(pairs)::value;
    constexpr bool C = decltype(columns_too)::value;
    transposed ? scale_weights<T, P, C, true>(tile, weights, statistics, shifts, gradient)
               : scale_weights<T, P, C, false>(tile, weights, statistics, shifts, gradient);
  };
  with_pairs(tile, [&](auto pairs) {
    tile.self_mode ? choose(pairs, std::true_type()) : choose(pairs, std::false_type());
  });
}

// G of one tile, in self mode G + G^T. `exact` takes an exponential for each row and each column.
// Logits are copied, as in sum_tile.
template <class T, Pairs pairs, bool columns_too, bool exact, bool skipping, class Logits>
void similarity_gradient(const Tile<T>& tile, const T* similarities, Logits logits,
                         const Statistics<T>& statistics, T shift_positive, T shift_negative,
                         T negligible, T* gradient, TileShare& share) {
  constexpr bool mixed = pairs != Pairs::negative;
  Factors<T> row_negative, row_positive, column_negative, column_positive;
  const RowStatistics<T>&positive = statistics.positive, &negative = statistics.negative;
  if constexpr (!exact) {
    fill_factors(negative, tile.row, shift_negative, row_negative);
    if constexpr (mixed) fill_factors(positive, tile.row, shift_positive, row_positive);
    if constexpr (columns_too) {
      fill_factors(negative, tile.column, shift_negative, column_negative);
      if constexpr (mixed) fill_factors(positive, tile.column, shift_positive, column_positive);
    }
  }
  Vec<T> column_shares[PANEL_VECTORS<T>] = {};
  const int64_t live = tile.live_rows();
  for (int64_t row = 0; row < live; ++row) {
    Vec<T> row_shares{};
    CIRCLE_UNROLL_PAIRS
    for (int vector = 0; vector < PANEL_VECTORS<T>; ++vector) {
      const int64_t column = vector * LANES<T>;
      const Vec<T> similarity = load(similarities + row * PANEL + column);
      PairMasks<T> masks{};
      if constexpr (mixed) masks = pair_masks<T, pairs>(tile, row, column);
      // Of the pair's kind: the positive's value or the negative's.
      const auto of_kind = [&](auto of_positive, auto of_negative) {
        if constexpr (!mixed) {
          return of_negative();
        } else {
          return select<T>(masks.positive, of_positive(), of_negative());
        }
      };
      const auto at = [&](const T* values) { return load(values + column); };
      // 0 where a pair is not listed for the row, or for the column.
      const auto of_listed = [&](Vec<Int<T>> listed, Vec<T> value) {
        return pairs == Pairs::listed ? select<T>(listed, value, Vec<T>{}) : value;
      };

      Vec<T> weight, largest_share;
      const Vec<T> slope = of_kind([&] { return logits.positive_slope(similarity); },
                                   [&] { return logits.negative_slope(similarity); });
      if constexpr (exact) {
        const Vec<T> logit = of_kind([&] { return logits.positive(similarity); },
                                     [&] { return logits.negative(similarity); });
        const int64_t i = tile.row * PANEL + row, j = tile.column * PANEL;
        const Vec<T> row_gradient = of_kind([&] { return splat(positive.gradient[i]); },
                                            [&] { return splat(negative.gradient[i]); });
        const Vec<T> row_share =
            select<T>(row_gradient == 0, Vec<T>{},
                      of_listed(masks.row(),
                                exp2<T>(logit - of_kind([&] { return splat(positive.lse[i]); },
                                                        [&] { return splat(negative.lse[i]); }))));
        weight = row_share * row_gradient;
        largest_share = row_share;
        if constexpr (columns_too) {
          const Vec<T> column_gradient = of_kind([&] { return at(positive.gradient + j); },
                                                 [&] { return at(negative.gradient + j); });
          const Vec<T> column_share =
              select<T>(column_gradient == 0, Vec<T>{},
                        of_listed(masks.column(),
                                  exp2<T>(logit - of_kind([&] { return at(positive.lse + j); },
                                                          [&] { return at(negative.lse + j); }))));
          weight += column_share * column_gradient;
          largest_share = at_least(column_share, largest_share);
        }
      } else {
        const Vec<T> exponential =
            exp2<T>(of_kind([&] { return logits.positive(similarity) - shift_positive; },
                            [&] { return logits.negative(similarity) - shift_negative; }));
        Vec<T> factor =
            of_listed(masks.row(), of_kind([&] { return splat(row_positive.gradient[row]); },
                                           [&] { return splat(row_negative.gradient[row]); }));
        if constexpr (columns_too) {
          factor +=
              of_listed(masks.column(), of_kind([&] { return at(column_positive.gradient); },
                                                [&] { return at(column_negative.gradient); }));
        }
        weight = exponential * factor;
        if constexpr (skipping) {
          Vec<T> shares = of_kind([&] { return splat(row_positive.share[row]); },
                                  [&] { return splat(row_negative.share[row]); });
          if constexpr (columns_too) {
            shares = at_least(of_kind([&] { return at(column_positive.share); },
                                      [&] { return at(column_negative.share); }),
                              shares);
          }
          largest_share = exponential * shares;
        }
      }
      Vec<T> result = weight * slope;
      if constexpr (mixed) result = select<T>(masks.positive | masks.negative, result, Vec<T>{});
      store(gradient + row * PANEL + column, result);
      if constexpr (skipping) {
        if constexpr (mixed) {
          largest_share = select<T>(masks.positive | masks.negative, largest_share, Vec<T>{});
        }
        row_shares = at_least(row_shares, largest_share);
        column_shares[vector] = at_least(column_shares[vector], largest_share);
      }
    }
    // Not "greater than": NaN is never negligible.
    if constexpr (skipping) share.rows[row] = !(largest<T>(row_shares) <= negligible);
  }
  // Products may take a tile as a whole.
  std::memset(gradient + live * PANEL, 0, (PANEL - live) * PANEL * sizeof(T));
  if constexpr (skipping) {
    alignas(64) T shares[PANEL];
    std::memcpy(shares, column_shares, sizeof shares);
    share.any = false;
    for (int64_t row = live; row < PANEL; ++row) share.rows[row] = false;
    for (int64_t column = 0; column < PANEL; ++column) {
      share.columns[column] = !(shares[column] <= negligible);
      share.any |= share.columns[column] != 0;
    }
  }
}

// Chooses the body that a tile needs.
template <class T, bool columns_too, bool skipping, class Logits>
void tile_gradient(const Tile<T>& tile, const T* similarities, const TileRanges<T>& ranges,
                   const Logits& logits, const Statistics<T>& statistics, T negligible, T* gradient,
                   TileShare& share) {
  const bool mixed = tile.pairs() != Pairs::negative;
  const auto lowest = [&](const RowStatistics<T>& kind) {
    return columns_too ? smaller(kind.lowest[tile.row], kind.lowest[tile.column])
                       : kind.lowest[tile.row];
  };
  const SharedShift<T> negative =
      shared_shift(negative_range(logits, ranges.negative).highest, lowest(statistics.negative));
  const SharedShift<T> positive =
      shared_shift(positive_range(logits, ranges.positive).highest, lowest(statistics.positive));
  const auto run = [&](auto body) {
    body(tile, similarities, logits, statistics, positive.shift, negative.shift, negligible,
         gradient, share);
  };
  share.any = share.all = true;
  if (skipping) share.all = false;
  const bool exact = !negative.possible || (mixed && !positive.possible);
  if (tile.listed != nullptr) {
    exact ? run(similarity_gradient<T, Pairs::listed, columns_too, true, skipping, Logits>)
          : run(similarity_gradient<T, Pairs::listed, columns_too, false, skipping, Logits>);
  } else if (exact) {
    run(similarity_gradient<T, Pairs::mixed, columns_too, true, skipping, Logits>);
  } else if (mixed) {
    run(similarity_gradient<T, Pairs::mixed, columns_too, false, skipping, Logits>);
  } else {
    run(similarity_gradient<T, Pairs::negative, columns_too, false, skipping, Logits>);
  }
}

}  // namespace
}  // namespace circle_kernels
