// Which of the columns is a row itself, or its own copy: pairs of neither kind.
#pragma once

#include "common/memory.h"
#include "kernels/tiles/tiles.h"

namespace circle_kernels {
namespace {

template <class T>
T* allocate(Arena& arena, int64_t count) {
  return static_cast<T*>(arena.allocate(count, sizeof(T)));
}

// For each row, in panel order, which column is the row itself or its own copy, in panel order too;
// -1 for none. Null where no row has any.
template <class T>
const Int<T>* own_places(const Problem& problem, const Panels<T>& rows, const Panels<T>& columns,
                         Arena& arena) {
  if (!problem.self_mode && problem.own_columns == nullptr) return nullptr;
  Int<T>* own = allocate<Int<T>>(arena, rows.panels() * PANEL);
  if (problem.self_mode) {
    for (int64_t row = 0; row < rows.panels() * PANEL; ++row) own[row] = static_cast<Int<T>>(row);
    return own;
  }
  Int<T>* place_of = allocate<Int<T>>(arena, columns.count);  // column as given -> in panel order
  for (int64_t column = 0; column < columns.count; ++column) {
    place_of[columns.caller_row(column)] = static_cast<Int<T>>(column);
  }
  for (int64_t row = 0; row < rows.panels() * PANEL; ++row) {
    own[row] = -1;
    if (row >= rows.count) continue;
    const int64_t column = problem.own_columns[rows.caller_row(row) * problem.own_stride];
    if (column >= 0 && column < columns.count) own[row] = place_of[column];
  }
  return own;
}

// Tile::own, of what own_places() returned.
template <class T>
const T* own_in_tile(const T* own, bool self_mode, int64_t row, int64_t column) {
  if (own == nullptr) return nullptr;
  const T* of_rows = own + row * PANEL;
  if (self_mode) return row == column ? of_rows : nullptr;
  bool any = false;
  for (int64_t index = 0; index < PANEL; ++index) {
    any |= of_rows[index] >= column * PANEL && of_rows[index] < (column + 1) * PANEL;
  }
  return any ? of_rows : nullptr;
}

}  // namespace
}  // namespace circle_kernels
