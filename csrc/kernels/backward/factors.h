// What one exponential of a tile is multiplied by to become a row's weight, or a column's.
#pragma once

#include "kernels/backward/statistics.h"
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

// The factors of all that count a tile's pairs: of rows and, with `columns_too`, of columns.
template <class T, Pairs pairs, bool columns_too>
struct TileFactors {
  Factors<T> row_negative, row_positive;        // positive: unless all pairs are negative
  Factors<T> column_negative, column_positive;  // with `columns_too`

  TileFactors(const Tile<T>& tile, const Statistics<T>& statistics, TileShifts<T> shifts) {
    const auto fill = [&](const SideStatistics<T>& side, int64_t panel, Factors<T>& negative,
                          Factors<T>& positive) {
      fill_factors(side.negative, panel, shifts.negative, negative);
      if constexpr (pairs != Pairs::negative) {
        fill_factors(side.positive, panel, shifts.positive, positive);
      }
    };
    fill(statistics.rows, tile.row, row_negative, row_positive);
    if constexpr (columns_too) {
      fill(statistics.columns, tile.column, column_negative, column_positive);
    }
  }
};

}  // namespace
}  // namespace circle_kernels
