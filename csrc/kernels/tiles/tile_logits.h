// The logits of a tile: how far they range, and where its pairs' logits and slopes come from.
#pragma once

#include "kernels/tiles/formula.h"
#include "kernels/tiles/tiles.h"

namespace circle_kernels {
namespace {

// Beyond what logits are not told apart, so that differences of them stay finite. A log-sum-exp
// of those that lie there is infinite.
template <class T>
constexpr T LARGEST_LOGIT = std::numeric_limits<T>::max() / 4;

// The exact largest logits of a tile, base 2, and how far below them the others may lie.
template <class T>
struct LogitRange {
  T highest;
  T spread;
};

// Of a function of similarity whose largest value on a range lies at one of its ends, as is so for
// both logits: where the weight is not 0 they are convex, and where it is 0 so is the logit, which
// is also what the convex part begins with.
template <class T, class Function>
LogitRange<T> logit_range(const Range<T>& range, Function logit) {
  if (range.empty()) return {0, 0};
  const auto at = [&](T similarity) { return logit(splat(similarity))[0]; };
  const T low = at(range.low), high = at(range.high);
  // A vertex lies between the ends, if anywhere; the middle is near enough for a spread.
  const T middle = at((range.low + range.high) / 2);
  const T highest = low > high ? low : high;
  const T end = low < high ? low : high;
  return {highest, highest - (middle < end ? middle : end)};
}

// `of_pair` has the logits and slopes of pairs, by their similarities and places.
template <class T, class OfPair>
struct TileLogits {
  OfPair of_pair;
  LogitRange<T> positive, negative;
};

// Of a closed formula, from the range of the tile's similarities.
template <class T, class Logits>
TileLogits<T, Logits> logits_of_tile(const Logits& logits, const Tile<T>&, const T*,
                                     const TileRanges<T>& ranges, T*) {
  return {logits,
          logit_range<T>(ranges.positive, [&](Vec<T> each) { return logits.positive(each); }),
          logit_range<T>(ranges.negative, [&](Vec<T> each) { return logits.negative(each); })};
}

// Needs no memory, and nothing done before slopes are asked for.
template <class Logits>
int64_t logit_scratch_size(const Logits&) {
  return 0;
}
template <class T, class Logits>
void slopes_of_tile(const Logits&, const Tile<T>&, const T*, T*) {}

}  // namespace
}  // namespace circle_kernels
