// What the backward pass knows of each row: log-sum-exps, and the gradients that arrive from above.
#pragma once

#include <cmath>
#include <limits>

#include "common/memory.h"
#include "kernels/products/panels.h"
#include "kernels/tiles/saved.h"

namespace circle_kernels {
namespace {

// What the backward pass knows of each row of one kind of pair, in panel order.
template <class T>
struct RowStatistics {
  T* lse;       // (panels, PANEL) base 2
  T* gradient;  // (panels, PANEL) upstream gradient times gamma, over Statistics::gradient_unit; 0
                // for an empty set and for padding
  T* lowest;    // (panels,) smallest lse among rows with a gradient; +inf if there are none
};

template <class T>
struct Statistics {
  RowStatistics<T> positive, negative;
  // A power of two near the largest of the gradients, which factors 2^(shift - lse) would otherwise
  // carry out of the exponent's range; gradients of embeddings get it back at the very end.
  double gradient_unit;

  // Whether any row of the panel has a gradient.
  bool active(int64_t panel) const {
    return positive.lowest[panel] != INFINITE<T> || negative.lowest[panel] != INFINITE<T>;
  }
};

// One kind of pair's statistics, in panel order, from vectors in the order given; gradients as they
// came from upstream.
template <class T>
RowStatistics<T> row_statistics(const Panels<T>& rows, T* lse, const T* gradient, Arena& arena) {
  RowStatistics<T> statistics{lse, allocate<T>(arena, rows.panels() * PANEL),
                              allocate<T>(arena, rows.panels())};
  for (int64_t row = 0; row < rows.panels() * PANEL; ++row) {
    const bool empty = row >= rows.count || lse[row] == -INFINITE<T>;
    statistics.gradient[row] = empty ? T(0) : gradient[rows.caller_row(row)];
  }
  return statistics;
}

// The largest finite magnitude among upstream gradients.
template <class T>
T largest_gradient(const RowStatistics<T>& statistics, int64_t rows) {
  T largest = 0;
  for (int64_t row = 0; row < rows; ++row) {
    const T magnitude = std::abs(statistics.gradient[row]);
    if (magnitude > largest && magnitude < INFINITE<T>) largest = magnitude;
  }
  return largest;
}

// Multiplies the upstream gradients by gamma, over `gradient_unit`, and fills in `lowest`.
template <class T>
void scale_gradients(RowStatistics<T>& statistics, int64_t panels, double gamma,
                     double gradient_unit) {
  for (int64_t panel = 0; panel < panels; ++panel) {
    T lowest = INFINITE<T>;
    for (int64_t row = panel * PANEL; row < (panel + 1) * PANEL; ++row) {
      T& gradient = statistics.gradient[row];
      gradient = static_cast<T>(gradient / gradient_unit * gamma);
      if (gradient == 0) continue;
      // NaN: nothing is known of the distance, and the exact body carries it on.
      const T lse = statistics.lse[row], known = lse == lse ? lse : -INFINITE<T>;
      if (known < lowest) lowest = known;
    }
    statistics.lowest[panel] = lowest;
  }
}

template <class T>
Statistics<T> make_statistics(const Panels<T>& rows, const Saved<T>& saved,
                              const BackwardInput& input, double gamma, Arena& arena) {
  Statistics<T> statistics{
      row_statistics(rows, saved.lse_pos, static_cast<const T*>(input.grad_lse_pos), arena),
      row_statistics(rows, saved.lse_neg, static_cast<const T*>(input.grad_lse_neg), arena), 1};
  const T positive = largest_gradient(statistics.positive, rows.count);
  const T negative = largest_gradient(statistics.negative, rows.count);
  int exponent = 0, exponent_of_gamma = 0;
  std::frexp(positive > negative ? positive : negative, &exponent);
  std::frexp(gamma, &exponent_of_gamma);
  // Of double, which has room for what is then left, and for the inverse of the smallest divisor.
  constexpr int MOST = 960;
  exponent += exponent_of_gamma;
  statistics.gradient_unit = std::ldexp(1.0, exponent < -MOST  ? -MOST
                                             : exponent > MOST ? MOST
                                                               : exponent);
  scale_gradients(statistics.positive, rows.panels(), gamma, statistics.gradient_unit);
  scale_gradients(statistics.negative, rows.panels(), gamma, statistics.gradient_unit);
  return statistics;
}

// Whether a row with a gradient has one or a log-sum-exp that is not finite.
template <class T>
bool has_nonfinite(const RowStatistics<T>& statistics, int64_t rows) {
  for (int64_t row = 0; row < rows; ++row) {
    const T value = statistics.gradient[row], lse = statistics.lse[row];
    if (value != 0 && (value - value != 0 || lse - lse != 0)) return true;
  }
  return false;
}

}  // namespace
}  // namespace circle_kernels
