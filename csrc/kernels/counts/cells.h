// Where among its thresholds a similarity of a row stands, by a table of cells.
//
// A float32 similarity is known to within `error`. The thresholds' range is cut into cells; a cell
// that no threshold comes near says at once how many of them lie below. In the others a few
// comparisons decide, or find that only the exact similarity can.
#pragma once

#include <cmath>

#include "kernels/vectors/simd.h"

namespace circle_kernels {
namespace {

struct Cells {
  // Thresholds that one table takes: their number and a mark fit 16 bits.
  static constexpr int64_t MOST_THRESHOLDS = 4096;
  static constexpr uint16_t UNDECIDED = 0x8000;
  static constexpr float LARGEST = 8;  // that thresholds can be, and more

  int64_t count;    // of thresholds
  int64_t size;     // of the range, in cells; before and after it there is one more
  float first;      // where the range begins
  float scale;      // cells per unit of similarity
  float* low;       // (count,) below it a similarity is below the threshold
  float* high;      // (count,) above it above
  uint16_t* below;  // (size + 2,) how many thresholds are certainly below; or UNDECIDED

  static int64_t size_for(int64_t thresholds) {
    int64_t size = 256;
    while (size < 16 * thresholds && size < 2048) size *= 2;
    return size;
  }

  // Cells rise with similarities, whatever the rounding: subtraction, product, bounds and
  // truncation do.
  CIRCLE_INLINE Vec<int32_t> of(Vec<float> similarity) const {
    const Vec<float> place = (similarity - first) * scale;
    const Vec<float> bounded =
        at_most(splat(static_cast<float>(size)), at_least(splat(-1.0f), place));
    return __builtin_convertvector(bounded, Vec<int32_t>) + 1;
  }

  void fill(const double* thresholds, int64_t number, double error) {
    count = number;
    size = size_for(number);
    for (int64_t k = 0; k < number; ++k) {
      low[k] = nextafterf(static_cast<float>(thresholds[k] - error), -2 * LARGEST);
      high[k] = nextafterf(static_cast<float>(thresholds[k] + error), 2 * LARGEST);
    }
    first = low[0];
    scale = static_cast<float>(size - 1) / (high[number - 1] - first);
    int64_t k = 0;
    for (int64_t cell = 0; cell < size + 2; ++cell) {
      while (k < number && cell_of(high[k]) < cell) ++k;
      const bool decided = k == number || cell < cell_of(low[k]);
      below[cell] = static_cast<uint16_t>(k) | (decided ? 0 : UNDECIDED);
    }
  }

 private:
  int32_t cell_of(float similarity) const { return of(splat(similarity))[0]; }
};

}  // namespace
}  // namespace circle_kernels
