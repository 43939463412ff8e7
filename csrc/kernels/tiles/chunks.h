// The order in which tiles are visited.
#pragma once

#include "kernels/vectors/simd.h"

namespace circle_kernels {
namespace {

// Tiles are visited in chunks of panels; in self mode chunks and tiles from the diagonal on.
struct Chunk {
  int64_t first_row, last_row, first_column, last_column;  // panels, [first, last)
  bool on_diagonal;                                        // in self mode

  int64_t rows() const { return last_row - first_row; }
  int64_t columns() const { return last_column - first_column; }
  // Candidates for tiles; on the diagonal about half of them are none.
  int64_t size() const { return rows() * columns(); }
  int64_t row(int64_t index) const { return first_row + index / columns(); }
  int64_t column(int64_t index) const { return first_column + index % columns(); }
  bool visits(int64_t row, int64_t column) const { return !on_diagonal || row <= column; }
  // Where a tile's entry lies in a buffer of `size` entries.
  int64_t slot(int64_t row, int64_t column) const {
    return (row - first_row) * columns() + (column - first_column);
  }
};

// Calls `visit` with every chunk, in self mode rows outermost, else columns, of which a chunk then
// has at most `column_edge` panels.
template <class Visit>
CIRCLE_INLINE void for_each_chunk(int64_t row_panels, int64_t column_panels, int64_t edge,
                                  int64_t column_edge, bool self_mode, Visit visit) {
  const auto visit_at = [&](int64_t row, int64_t column) {
    visit(Chunk{row, row + edge < row_panels ? row + edge : row_panels, column,
                column + column_edge < column_panels ? column + column_edge : column_panels,
                self_mode && row == column});
  };
  if (self_mode) {
    for (int64_t row = 0; row < row_panels; row += edge) {
      for (int64_t column = row; column < column_panels; column += edge) visit_at(row, column);
    }
    return;
  }
  for (int64_t column = 0; column < column_panels; column += column_edge) {
    for (int64_t row = 0; row < row_panels; row += edge) visit_at(row, column);
  }
}

// The place of a tile among all tiles, row by row.
inline int64_t tile_index(int64_t row, int64_t column, int64_t column_panels, bool self_mode) {
  return self_mode ? row * column_panels - row * (row - 1) / 2 + (column - row)
                   : row * column_panels + column;
}

}  // namespace
}  // namespace circle_kernels
