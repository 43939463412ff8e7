// The gradient of a tile, G = dL/ds, or G + G^T where columns count its pairs, too: s_ij and s_ji
// are then one number. From its similarities, in the way that the range of its logits allows.
#pragma once

#include "kernels/backward/exact_gradient.h"
#include "kernels/backward/shared_gradient.h"

namespace circle_kernels {
namespace {

// Chooses the body that a tile needs.
template <class T, bool columns_too, bool skipping, class Logits>
void tile_gradient(const Tile<T>& tile, const T* similarities, const TileLogits<T, Logits>& logits,
                   const Statistics<T>& statistics, T negligible, T* gradient, TileShare& share) {
  const bool mixed = tile.pairs() != Pairs::negative;
  const auto lowest = [&](const RowStatistics<T>& rows, const RowStatistics<T>& columns) {
    return columns_too ? smaller(rows.lowest[tile.row], columns.lowest[tile.column])
                       : rows.lowest[tile.row];
  };
  const SharedShift<T> negative = shared_shift(
      logits.negative.highest, lowest(statistics.rows.negative, statistics.columns.negative));
  const SharedShift<T> positive = shared_shift(
      logits.positive.highest, lowest(statistics.rows.positive, statistics.columns.positive));
  const TileShifts<T> shifts{positive.shift, negative.shift};
  const auto run_shared = [&](auto body) {
    body(tile, similarities, logits.of_pair, statistics, shifts, negligible, gradient, share);
  };
  const auto run_exact = [&](auto body) {
    body(tile, similarities, logits.of_pair, statistics, negligible, gradient, share);
  };
  share.any = share.all = true;
  if (skipping) share.all = false;
  const bool exact = !negative.possible || (mixed && !positive.possible);
  if (tile.listed != nullptr) {
    exact ? run_exact(exact_gradient<T, Pairs::listed, columns_too, skipping, Logits>)
          : run_shared(shared_gradient<T, Pairs::listed, columns_too, skipping, Logits>);
  } else if (exact) {
    run_exact(exact_gradient<T, Pairs::mixed, columns_too, skipping, Logits>);
  } else if (mixed) {
    run_shared(shared_gradient<T, Pairs::mixed, columns_too, skipping, Logits>);
  } else {
    run_shared(shared_gradient<T, Pairs::negative, columns_too, skipping, Logits>);
  }
}

}  // namespace
}  // namespace circle_kernels
