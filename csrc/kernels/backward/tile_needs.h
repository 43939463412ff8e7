// What the gradient of a tile takes: nothing, the weights that were kept, or its similarities.
#pragma once

#include "kernels/backward/statistics.h"
#include "kernels/tiles/chunks.h"
#include "kernels/tiles/saved.h"

namespace circle_kernels {
namespace {

template <class T>
class TileNeeds {
 public:
  TileNeeds(const Operands<T>& operands, const Saved<T>& saved, const Statistics<T>& statistics)
      : operands_(operands), saved_(saved), statistics_(statistics) {
    const int64_t rows = operands.rows.count, columns = operands.columns.count;
    const bool other_columns = statistics.columns_too && !operands.problem.self_mode;
    // Each pair may be dropped that has less than its equal part of what a row may lose, and a
    // column where it counts.
    skipping_ = operands.problem.skip_below > 0 && !has_nonfinite(statistics.rows, rows) &&
                !(other_columns && has_nonfinite(statistics.columns, columns));
    if (!skipping_) return;
    const int64_t pairs = other_columns && rows > columns ? rows : columns;
    negligible_ = static_cast<T>(operands.problem.skip_below / pairs);
    log_negligible_ = std::log2(negligible_);
  }

  bool skipping() const { return skipping_; }
  // Of a row's weight, what a pair may have that is dropped.
  T negligible() const { return negligible_; }

  // Whether nothing in a tile can have a gradient, so that it need not be computed.
  bool nothing(int64_t row, int64_t column) const {
    const SideStatistics<T>&of_rows = statistics_.rows, &of_columns = statistics_.columns;
    const bool columns_too = statistics_.columns_too;
    if (!of_rows.active(row) && !(columns_too && of_columns.active(column))) return true;
    if (!skipping_) return false;
    const T highest = saved_.highest[index_of(row, column)];
    T lowest = of_rows.negative.lowest[row];
    if (columns_too) lowest = smaller(lowest, of_columns.negative.lowest[column]);
    return highest - lowest < log_negligible_;
  }

  // Whether a tile's weights were kept, and serve all that count its pairs.
  //
  // A factor reaches FARTHEST. The forward pass has summed all that a row counts and, but for
  // references that are rows of the same batch, a column, and keeps no weights where that lies
  // further below; of what those count it knows nothing. One that counts no such pair in the tile
  // may lie there, too.
  bool weights(int64_t row, int64_t column) const {
    const int64_t index = index_of(row, column);
    if (!saved_.holds_weights(index)) return false;
    const Problem& problem = operands_.problem;
    if (problem.self_mode || problem.both_sides || !statistics_.columns_too) return true;
    const auto reaches = [&](T shift, const RowStatistics<T>& kind) {  // false for NaN
      return shift - kind.lowest[column] <= FARTHEST<T> + 1;
    };
    const TileShifts<T>& shifts = saved_.shifts[index];
    return reaches(shifts.negative, statistics_.columns.negative) &&
           (operands_.tile(row, column).only_negatives() ||
            reaches(shifts.positive, statistics_.columns.positive));
  }

  // A tile's similarities where these were kept, or null.
  const T* similarities(int64_t row, int64_t column) const {
    const int64_t index = index_of(row, column);
    return saved_.holds_weights(index) ? nullptr : saved_.tile(index);
  }

  // Whether there is a tile of which neither serves.
  bool products() const {
    const bool self_mode = operands_.problem.self_mode;
    for (int64_t row = 0; row < operands_.rows.panels(); ++row) {
      for (int64_t column = self_mode ? row : 0; column < operands_.columns.panels(); ++column) {
        if (!weights(row, column) && similarities(row, column) == nullptr) return true;
      }
    }
    return false;
  }

  int64_t index_of(int64_t row, int64_t column) const {
    return tile_index(row, column, operands_.columns.panels(), operands_.problem.self_mode);
  }

 private:
  const Operands<T>& operands_;
  const Saved<T>& saved_;
  const Statistics<T>& statistics_;
  bool skipping_ = false;
  T negligible_ = 0, log_negligible_ = -INFINITE<T>;
};

}  // namespace
}  // namespace circle_kernels
