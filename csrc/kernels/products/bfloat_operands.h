// Panels of floats as operands of bfloat16 products (bfloat_products.h).
#pragma once

#include "common/bfloat_products.h"
#include "kernels/products/panels.h"

namespace circle_kernels {
namespace {

// One side of a problem as operands.
//
// bfloat16 embeddings stand in them exactly as they were given, but for a power of two, and their
// norms are applied to the product: rounding normalised embeddings to bfloat16 would cost half of
// their digits. float embeddings, where the user has allowed less than float products, are rounded.
struct BFloatPanels {
  int64_t words;  // of each operand of a panel
  BFloatPair *rows, *columns, *gradient;
  float* scales;  // (panels, PANEL) normalised embedding = scale * operand; null where all are 1
  int64_t first = 0;  // of the panels held

  BFloatOperand operand(int64_t panel) const {
    const int64_t at = (panel - first) * words;
    return {rows + at, columns + at, gradient + at};
  }
  float* panel_scales(int64_t panel) const {
    return scales != nullptr ? scales + (panel - first) * PANEL : nullptr;
  }
};

inline uint32_t rounded_bfloat(float value) {
  BFloat result;
  narrow(value, result);
  return result.bits;
}

// The bfloat16 parts that stand for one number: itself rounded, and what rounding left.
struct Parts {
  uint32_t high, low;

  explicit Parts(float value) : high(rounded_bfloat(value)) {
    low = rounded_bfloat(value - float_of(high << 16));
  }
};

// The mantissa of a divisor, in [1, 2): the factor between an embedding over its norm and the
// embedding over a power of two.
inline float mantissa(float divisor) {
  return float_of((bits_of(divisor) & 0x007fffffu) | 0x3f800000u);
}

inline void pack_operand(const float* panel,     // (dim, PANEL) normalised
                         const float* divisors,  // (PANEL,)
                         int64_t dim, int terms, int64_t index, const BFloatPanels& operands) {
  const BFloatOperand operand = operands.operand(index);
  const int64_t padded = padded_dim(dim);
  float* scales = operands.panel_scales(index);
  float factors[PANEL];
  for (int64_t row = 0; row < PANEL; ++row) {
    const bool scaled = scales != nullptr && divisors[row] == divisors[row];
    factors[row] = scaled ? mantissa(divisors[row]) : 1;
    if (scales != nullptr) scales[row] = 1 / factors[row];
  }
  auto* by_row = reinterpret_cast<uint16_t*>(operand.rows);
  auto* by_dim = reinterpret_cast<uint16_t*>(operand.gradient);
  // Terms of the rows: high, high, low. Of the other two: high, low, high.
  for (int term = 0; term < terms; ++term) {
    BFloatPair* pairs = operand.columns + term * (padded / 2) * PANEL;
    for (int64_t d = 0; d < padded; d += 2) {
      for (int64_t row = 0; row < PANEL; ++row) {
        const float lower = d < dim ? panel[d * PANEL + row] * factors[row] : 0;
        const float upper = d + 1 < dim ? panel[(d + 1) * PANEL + row] * factors[row] : 0;
        const Parts first(lower), second(upper);
        const bool low = term == 1;
        const uint32_t a = low ? first.low : first.high, b = low ? second.low : second.high;
        pairs[d / 2 * PANEL + row] = a | b << 16;
        by_dim[(d * terms + term) * PANEL + row] = static_cast<uint16_t>(a);
        by_dim[((d + 1) * terms + term) * PANEL + row] = static_cast<uint16_t>(b);
        uint16_t* to = by_row + (row * terms + term) * padded + d;
        to[0] = static_cast<uint16_t>(term == 2 ? first.low : first.high);
        to[1] = static_cast<uint16_t>(term == 2 ? second.low : second.high);
      }
    }
  }
}

// tile(i, j) *= row_scales(i) * column_scales(j)
inline void scale_tile(const float* row_scales, const float* column_scales, float* tile) {
  for (int64_t row = 0; row < PANEL; ++row) {
    for (int64_t column = 0; column < PANEL; ++column) {
      tile[row * PANEL + column] =
          tile[row * PANEL + column] * row_scales[row] * column_scales[column];
    }
  }
}

// A tile of G as weights of the gradient: pairs of neighbouring rows k, times the scale of the
// embedding that row k stands for. Terms: high, high, low.
inline void pack_weights(const float* tile, const float* scales, int terms, BFloatPair* weights) {
  for (int64_t k = 0; k < PANEL; k += 2) {
    const float first_scale = scales != nullptr ? scales[k] : 1;
    const float second_scale = scales != nullptr ? scales[k + 1] : 1;
    BFloatPair* pairs = weights + k / 2 * PANEL;
    for (int64_t column = 0; column < PANEL; ++column) {
      const Parts first(tile[k * PANEL + column] * first_scale);
      const Parts second(tile[(k + 1) * PANEL + column] * second_scale);
      const BFloatPair high = first.high | second.high << 16;
      pairs[column] = high;
      if (terms == 1) continue;
      pairs[PANEL / 2 * PANEL + column] = high;
      pairs[PANEL * PANEL + column] = first.low | second.low << 16;
    }
  }
}

}  // namespace
}  // namespace circle_kernels
