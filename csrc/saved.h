// What the forward pass leaves for the backward pass, as pointers.
#pragma once

#include "operands.h"

namespace circle_kernels {
namespace {

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

}  // namespace
}  // namespace circle_kernels
