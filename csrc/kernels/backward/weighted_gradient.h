// What both ways to the gradient of a tile from its similarities have in common: the way through
// its pairs, their slopes, and which rows and columns have a weight worth a product.
#pragma once

#include "kernels/products/gradient_product.h"
#include "kernels/tiles/tile_logits.h"

namespace circle_kernels {
namespace {

// A vector of pairs, seen as the kind that each of them is.
template <class T, Pairs pairs>
struct PairKinds {
  PairMasks<T> masks;

  CIRCLE_INLINE static PairKinds of(const Tile<T>& tile, int64_t row, int64_t first_column) {
    PairKinds kinds{};
    if constexpr (pairs != Pairs::negative) {
      kinds.masks = pair_masks<T, pairs>(tile, row, first_column);
    }
    return kinds;
  }

  // What `positive` returns, or `negative`.
  template <class Positive, class Negative>
  CIRCLE_INLINE Vec<T> choose(Positive positive, Negative negative) const {
    if constexpr (pairs == Pairs::negative) {
      return negative();
    } else {
      return select<T>(masks.positive, positive(), negative());
    }
  }

  // One number for all pairs of a kind, or a vector of them.
  CIRCLE_INLINE Vec<T> choose_number(const T* positive, const T* negative) const {
    return choose([&] { return splat(*positive); }, [&] { return splat(*negative); });
  }
  CIRCLE_INLINE Vec<T> choose_vector(const T* positive, const T* negative) const {
    return choose([&] { return load(positive); }, [&] { return load(negative); });
  }

  // 0 where a pair is not listed for the row, or for the column.
  CIRCLE_INLINE Vec<T> for_row(Vec<T> value) const {
    return pairs == Pairs::listed ? select<T>(masks.row(), value, Vec<T>{}) : value;
  }
  CIRCLE_INLINE Vec<T> for_column(Vec<T> value) const {
    return pairs == Pairs::listed ? select<T>(masks.column(), value, Vec<T>{}) : value;
  }

  // 0 where there is no pair.
  CIRCLE_INLINE Vec<T> where_any(Vec<T> value) const {
    if constexpr (pairs == Pairs::negative) {
      return value;
    } else {
      return select<T>(masks.positive | masks.negative, value, Vec<T>{});
    }
  }
};

// Of a vector of pairs: G but for the slope, and the pair's largest share of a weight that it is
// part of, its row's or its column's.
template <class T>
struct PairWeights {
  Vec<T> weight, share;
};

// Fills G with slopes times what `weigh` returns for a row, a vector's first column, its
// similarities and its PairKinds; with `skipping` also the shares that are above `negligible`.
template <class T, Pairs pairs, bool skipping, class Logits, class Weigh>
CIRCLE_INLINE void fill_gradient(const Tile<T>& tile, const T* similarities, const Logits& logits,
                                 T negligible, T* gradient, TileShare& share, Weigh weigh) {
  Vec<T> column_shares[PANEL_VECTORS<T>] = {};
  const int64_t live = tile.live_rows();
  for (int64_t row = 0; row < live; ++row) {
    Vec<T> row_shares{};
    CIRCLE_UNROLL_PAIRS
    for (int vector = 0; vector < PANEL_VECTORS<T>; ++vector) {
      const int64_t column = vector * LANES<T>, at = row * PANEL + column;
      const Vec<T> similarity = load(similarities + at);
      const auto kinds = PairKinds<T, pairs>::of(tile, row, column);
      const Vec<T> slope = kinds.choose([&] { return logits.positive_slope(similarity, at); },
                                        [&] { return logits.negative_slope(similarity, at); });
      const PairWeights<T> weights = weigh(row, column, similarity, kinds);
      store(gradient + at, kinds.where_any(weights.weight * slope));
      if constexpr (skipping) {
        const Vec<T> shares = kinds.where_any(weights.share);
        row_shares = at_least(row_shares, shares);
        column_shares[vector] = at_least(column_shares[vector], shares);
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

}  // namespace
}  // namespace circle_kernels
