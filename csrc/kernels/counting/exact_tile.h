// The exact similarities of a whole tile, where most of its pairs need them: as fast per pair as
// three products of doubles, not as a dot product that waits for its operands.
#pragma once

#include "common/problem.h"
#include "kernels/counting/exact_similarity.h"
#include "kernels/products/register_product.h"

namespace circle_kernels {
namespace {

// Some rows of one side.
struct RowsOf {
  const double* values;  // (count, dim), contiguous
  int64_t count;         // at most PANEL
  int64_t dim;

  const double* row(int64_t index) const { return values + index * dim; }
};

// High and low parts of some values of d of a panel.
struct PartPanel {
  static constexpr int64_t DEPTH = 64;

  alignas(64) double high[DEPTH * PANEL];
  alignas(64) double low[DEPTH * PANEL];

  // Takes values of d from `first_dim` on, up to DEPTH of them, and zeros beyond the last one.
  void pack(const RowsOf& rows, int64_t first_dim) {
    constexpr int LANE_COUNT = LANES<double>;
    const int64_t depth = rows.dim - first_dim < DEPTH ? rows.dim - first_dim : DEPTH;
    double highs[LANE_COUNT][DEPTH], lows[LANE_COUNT][DEPTH];
    for (int64_t row = 0; row < PANEL; row += LANE_COUNT) {
      for (int lane = 0; lane < LANE_COUNT; ++lane) {
        const bool present = row + lane < rows.count;
        const double* values = rows.row(row + lane) + first_dim;
        for (int64_t d = 0; d < DEPTH; ++d) {
          const GridParts<double> parts(present && d < depth ? values[d] : 0);
          highs[lane][d] = parts.high;
          lows[lane][d] = parts.low;
        }
      }
      for (int64_t d = 0; d < DEPTH; d += LANE_COUNT) {
        transpose_block(&highs[0][d], DEPTH, high + d * PANEL + row, PANEL);
        transpose_block(&lows[0][d], DEPTH, low + d * PANEL + row, PANEL);
      }
    }
  }
};

// Of one thread.
struct ExactTile {
  PartPanel rows, columns;
  alignas(64) double similarities[PANEL * PANEL];  // meanwhile the sums of high parts
  alignas(64) double low_sums[PANEL * PANEL];

  void compute(const RowsOf& of_rows, const RowsOf& of_columns) {
    int64_t first_dim = 0;
    do {
      rows.pack(of_rows, first_dim);
      columns.pack(of_columns, first_dim);
      const bool more = first_dim > 0;
      multiply(rows.high, columns.high, similarities, more);
      multiply(rows.high, columns.low, low_sums, more);
      multiply(rows.low, columns.high, low_sums, true);
      first_dim += PartPanel::DEPTH;
    } while (first_dim < of_rows.dim);
    for (int64_t at = 0; at < PANEL * PANEL; ++at) similarities[at] += low_sums[at];
  }

 private:
  static void multiply(const double* a, const double* b, double* c, bool accumulate) {
    for_each_part<double>(PANEL, [&](int64_t column, auto width) {
      for (int64_t row = 0; row < PANEL; row += REGISTER_ROWS) {
        multiply_registers<double, REGISTER_ROWS, decltype(width)::value, 1, PANEL, false>(
            a + row, nullptr, b + column, PartPanel::DEPTH, c + row * PANEL + column, accumulate);
      }
    });
  }
};

}  // namespace
}  // namespace circle_kernels
