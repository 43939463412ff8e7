#include "common/listed.h"

namespace circle_kernels {

bool mark_pairs(const PairList& list, const PairMatrix& matrix, int threads) {
  const auto in_range = [](int64_t index, int64_t size) { return index >= 0 && index < size; };
  bool valid = true;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(&& : valid)
  for (int64_t index = 0; index < list.count; ++index) {
    int64_t row = list.rows[index], column = list.columns[index];
    if (row < 0) row += matrix.rows;
    if (column < 0) column += matrix.columns;
    if (!in_range(row, matrix.rows) || !in_range(column, matrix.columns)) {
      valid = false;
      continue;
    }
    // Relaxed, not read-modify-write: whoever else writes this byte now writes the same.
    uint8_t* kind = matrix.kinds + row * matrix.row_stride + column;
    const uint8_t old = __atomic_load_n(kind, __ATOMIC_RELAXED);
    if ((old & list.kind) == 0) {
      __atomic_store_n(kind, static_cast<uint8_t>(old | list.kind), __ATOMIC_RELAXED);
    }
  }
  return valid;
}

}  // namespace circle_kernels
