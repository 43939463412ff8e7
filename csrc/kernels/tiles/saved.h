// What the forward pass leaves for the backward pass, as pointers.
#pragma once

#include "kernels/tiles/operands.h"

namespace circle_kernels {
namespace {

// Relative to what the exponentials of a tile are, for each kind of pair. Infinite where no one
// value serves all of the tile.
template <class T>
struct TileShifts {
  T positive, negative;
  bool shared() const { return negative < INFINITE<T>; }
  static TileShifts none() { return {INFINITE<T>, INFINITE<T>}; }
};

// How far below its tile's shift a logit may lie, and so a row's log-sum-exp, for weights to be
// kept: the row's factor, with its upstream gradient, has to stay inside the exponent's range.
template <class T>
constexpr T FARTHEST = sizeof(T) == sizeof(float) ? T(90) : T(940);

// Of one side, in base 2 and panel order, -inf for an empty set and for padding.
template <class T>
struct LogSumExps {
  T* positive;  // (panels, PANEL)
  T* negative;
};

// Where the parts of SavedLayout lie. A kept tile with shared shifts holds weights,
//
//     w_ij = 2^(z_ij - shift) dz_ij/ds / gamma        (0 for a pair that is no pair)
//
// which are G but for a factor of the row and, where it counts, one of the column (factors.h); any
// other holds similarities, and so do all with skip_below, which needs a pair's share of its row.
//
// Without a backward pass to come, only the log-sum-exps have a place, in scratch memory.
template <class T>
struct Saved {
  int64_t kept_tiles;
  T* tiles;
  LogSumExps<T> rows, columns;  // of columns: nothing unless Problem::both_sides
  TileShifts<T>* shifts;        // (kept_tiles,); null where similarities are kept
  T* highest;                   // null where skip_below cannot use it

  Saved(const Problem& problem, T* begin) {
    const SavedLayout layout(problem);
    kept_tiles = layout.kept_tiles;
    tiles = begin + layout.header;
    T* rest = take_sums(layout, tiles + layout.kept_tiles * PANEL * PANEL);
    static_assert(sizeof(TileShifts<T>) == 2 * sizeof(T));
    shifts = layout.shifts > 0 ? reinterpret_cast<TileShifts<T>*>(rest) : nullptr;
    highest = layout.highest > 0 ? rest + layout.shifts : nullptr;
  }

  Saved(const Problem& problem, Arena& arena)
      : kept_tiles(0), tiles(nullptr), shifts(nullptr), highest(nullptr) {
    const SavedLayout layout(problem);
    take_sums(layout, allocate<T>(arena, 2 * (layout.rows + layout.columns)));
  }

  // The place of a kept tile, or null.
  T* tile(int64_t index) const {
    return index < kept_tiles ? tiles + index * PANEL * PANEL : nullptr;
  }
  // Whether a tile's weights are kept if one shift serves it; whether that is what was kept.
  bool keeps_weights(int64_t index) const { return index < kept_tiles && shifts != nullptr; }
  bool holds_weights(int64_t index) const { return keeps_weights(index) && shifts[index].shared(); }

 private:
  // What comes after them.
  T* take_sums(const SavedLayout& layout, T* begin) {
    rows = {begin, begin + layout.rows};
    begin += 2 * layout.rows;
    columns = {begin, begin + layout.columns};
    return begin + 2 * layout.columns;
  }
};

// Log-sum-exps as Saved has them, in base 2 and panel order, -inf for padding, from natural ones in
// the order given; `nats` is nats_per_logit().
template <class T>
void take_logsumexps(const T* natural, int64_t count, const int64_t* order, double nats,
                     T* base_2) {  // (panels, PANEL)
  for (int64_t row = 0; row < panels_of(count) * PANEL; ++row) {
    base_2[row] = row >= count
                      ? -INFINITE<T>
                      : static_cast<T>(natural[order != nullptr ? order[row] : row] / nats);
  }
}

}  // namespace
}  // namespace circle_kernels
