// Tiles of the similarity matrix: which pairs of a tile are positive or negative, and how far its
// similarities range.
#pragma once

#include <type_traits>

#include "kernels/products/panels.h"

namespace circle_kernels {
namespace {

template <class T>
constexpr int PANEL_VECTORS = PANEL / LANES<T>;

// What a tile's pairs can be: all negative, any kind by their classes, or what is listed.
enum class Pairs { negative, mixed, listed };

// One tile: panel `row` of the rows against panel `column` of the columns.
template <class T>
struct Tile {
  const Panels<T>& rows;
  const Panels<T>& columns;
  int64_t row, column;
  bool self_mode;
  const uint8_t* listed;  // ListedPair of the tile's first pair; null where classes count
  int64_t listed_stride;
  const Int<T>* own;  // (PANEL,) places of rows' own copies; null where none is in the tile

  int64_t live_rows() const { return rows.live(row); }
  int64_t live_columns() const { return columns.live(column); }
  const Int<T>* row_classes() const { return rows.class_ids + row * PANEL; }
  const Int<T>* column_classes() const { return columns.class_ids + column * PANEL; }
  bool on_diagonal() const { return self_mode && row == column; }
  // Whether the tile also stands for its transpose, which is not visited.
  bool mirrored() const { return self_mode && row != column; }
  // Whether every pair of the tile is a negative one: no row's class in the range of the columns',
  // no padding among the columns, no embedding against itself or its own copy. Most tiles, since
  // panels are in label order.
  bool only_negatives() const {
    return listed == nullptr && own == nullptr && !columns.padded(column) &&
           !rows.any_class_in(row, columns.first_class(column), columns.last_class(column));
  }
  Pairs pairs() const {
    return listed != nullptr ? Pairs::listed : only_negatives() ? Pairs::negative : Pairs::mixed;
  }
};

template <Pairs pairs>
using PairsConstant = std::integral_constant<Pairs, pairs>;

// Calls `run` with what a tile's pairs are, as a constant.
template <class T, class Run>
CIRCLE_INLINE auto with_pairs(const Tile<T>& tile, Run run) {
  switch (tile.pairs()) {
    case Pairs::negative:
      return run(PairsConstant<Pairs::negative>());
    case Pairs::mixed:
      return run(PairsConstant<Pairs::mixed>());
    default:
      return run(PairsConstant<Pairs::listed>());
  }
}

// Which of a vector of pairs are positive and which negative: for anybody, for the row, and in self
// mode for the columns' own rows. By classes these are one and the same.
template <class T>
struct PairMasks {
  Vec<Int<T>> positive, negative;
  Vec<Int<T>> row_positive, row_negative, column_positive, column_negative;

  CIRCLE_INLINE Vec<Int<T>> row() const { return row_positive | row_negative; }
  CIRCLE_INLINE Vec<Int<T>> column() const { return column_positive | column_negative; }
};

template <class T, Pairs pairs>
CIRCLE_INLINE PairMasks<T> pair_masks(const Tile<T>& tile, int64_t row, int64_t first_column) {
  if constexpr (pairs == Pairs::listed) {
    const Vec<Int<T>> listed =
        widen_bytes<T>(tile.listed + row * tile.listed_stride + first_column);
    const auto any = [&](int of) { return (listed & static_cast<Int<T>>(of)) != 0; };
    return {any(ROW_POSITIVE | COLUMN_POSITIVE),
            any(ROW_NEGATIVE | COLUMN_NEGATIVE),
            any(ROW_POSITIVE),
            any(ROW_NEGATIVE),
            any(COLUMN_POSITIVE),
            any(COLUMN_NEGATIVE)};
  }
  const Vec<Int<T>> classes = load(tile.column_classes() + first_column);
  const Vec<Int<T>> same = classes == tile.row_classes()[row];
  const Vec<Int<T>> present = classes != static_cast<Int<T>>(NO_CLASS);
  Vec<Int<T>> positive = same & present, negative = ~same & present;
  if (tile.own != nullptr) {
    const int64_t lane = tile.own[row] - tile.column * PANEL - first_column;
    if (lane >= 0 && lane < LANES<T>) positive[lane] = negative[lane] = 0;
  }
  return {positive, negative, positive, negative, positive, negative};
}

template <class T>
constexpr T INFINITE = std::numeric_limits<T>::infinity();

// The smallest and the largest similarity, or logit, among one kind of pair of a tile.
template <class T>
struct Range {
  T low, high;
  bool empty() const { return low > high; }
  static Range none() { return {INFINITE<T>, -INFINITE<T>}; }
};

template <class T>
struct TileRanges {
  Range<T> positive, negative;
};

// The range of vectors that it is called with.
template <class T>
struct RangeOf {
  Vec<T> low = splat(INFINITE<T>), high = -splat(INFINITE<T>);

  CIRCLE_INLINE void operator()(Vec<T> values) {
    low = at_most(low, values);
    high = at_least(high, values);
  }
  CIRCLE_INLINE void operator()(Vec<T> values, Vec<Int<T>> mask) {
    const Vec<T> none = splat(INFINITE<T>);
    low = at_most(low, select<T>(mask, values, none));
    high = at_least(high, select<T>(mask, values, -none));
  }
  Range<T> range() const { return {smallest<T>(low), largest<T>(high)}; }
};

template <class T, Pairs pairs>
CIRCLE_INLINE TileRanges<T> value_ranges(const Tile<T>& tile, const T* positives,
                                         const T* negatives) {
  RangeOf<T> positive, negative;
  for (int64_t row = 0; row < tile.live_rows(); ++row) {
    for (int vector = 0; vector < PANEL_VECTORS<T>; ++vector) {
      const int64_t column = vector * LANES<T>, at = row * PANEL + column;
      if constexpr (pairs != Pairs::negative) {
        const PairMasks<T> masks = pair_masks<T, pairs>(tile, row, column);
        positive(load(positives + at), masks.positive);
        negative(load(negatives + at), masks.negative);
      } else {
        negative(load(negatives + at));
      }
    }
  }
  return {positive.range(), negative.range()};
}

// Of values of a tile's positives and of its negatives, (PANEL, PANEL); those of positives are not
// looked at where there can be none.
template <class T>
TileRanges<T> ranges_of(const Tile<T>& tile, const T* positives, const T* negatives) {
  return with_pairs(tile, [&](auto pairs) {
    return value_ranges<T, decltype(pairs)::value>(tile, positives, negatives);
  });
}

template <class T>
TileRanges<T> ranges_of(const Tile<T>& tile, const T* similarities) {
  return with_pairs(tile, [&](auto pairs) {
    return value_ranges<T, decltype(pairs)::value>(tile, similarities, similarities);
  });
}

}  // namespace
}  // namespace circle_kernels
