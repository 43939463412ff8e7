// What the backward pass knows of each row, and of each column that counts pairs, too:
// log-sum-exps, and the gradients that arrive from above.
#pragma once

#include <cmath>
#include <limits>

#include "common/memory.h"
#include "kernels/products/panels.h"
#include "kernels/tiles/formula.h"
#include "kernels/tiles/saved.h"

namespace circle_kernels {
namespace {

template <class T>
T smaller(T a, T b) {
  return a < b ? a : b;
}

// What the backward pass knows of each row of one kind of pair, in panel order.
template <class T>
struct RowStatistics {
  T* lse;       // (panels, PANEL) base 2
  T* gradient;  // (panels, PANEL) upstream gradient times gamma, over Statistics::gradient_unit; 0
                // for an empty set and for padding
  T* lowest;    // (panels,) smallest lse among rows with a gradient; +inf if there are none
};

// What it knows of all rows, or of all columns.
template <class T>
struct SideStatistics {
  RowStatistics<T> positive, negative;

  // Whether any row of the panel has a gradient.
  bool active(int64_t panel) const {
    return positive.lowest[panel] != INFINITE<T> || negative.lowest[panel] != INFINITE<T>;
  }
};

template <class T>
struct Statistics {
  SideStatistics<T> rows;
  SideStatistics<T> columns;  // in self mode the rows' again; empty unless `columns_too`
  // Whether columns count each pair as well, as rows of the same batch or for themselves: G + G^T
  // is wanted.
  bool columns_too;
  // A power of two near the largest of the gradients, which factors 2^(shift - lse) would otherwise
  // carry out of the exponent's range; gradients of embeddings get it back at the very end.
  double gradient_unit;
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

// Half or more of the largest finite magnitude among upstream gradients times gamma is this power
// of two; the lowest exponent where there is no gradient.
constexpr int NO_EXPONENT = std::numeric_limits<int>::min();

template <class T>
int gradient_exponent(const RowStatistics<T>& statistics, int64_t rows, double gamma) {
  T largest = 0;
  for (int64_t row = 0; row < rows; ++row) {
    const T magnitude = std::abs(statistics.gradient[row]);
    if (magnitude > largest && magnitude < INFINITE<T>) largest = magnitude;
  }
  if (largest == 0) return NO_EXPONENT;
  int exponent = 0, exponent_of_gamma = 0;
  std::frexp(largest, &exponent);
  std::frexp(gamma, &exponent_of_gamma);
  return exponent + exponent_of_gamma;
}

template <class T>
int gradient_exponent(const SideStatistics<T>& side, int64_t rows, const Formula& formula) {
  const int positive = gradient_exponent(side.positive, rows, formula.gamma_pos);
  const int negative = gradient_exponent(side.negative, rows, formula.gamma_neg);
  return positive > negative ? positive : negative;
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
void scale_gradients(SideStatistics<T>& side, int64_t panels, const Formula& formula,
                     double gradient_unit) {
  scale_gradients(side.positive, panels, formula.gamma_pos, gradient_unit);
  scale_gradients(side.negative, panels, formula.gamma_neg, gradient_unit);
}

// Of columns that are rows of the same batch, from BackwardInput::column_statistics.
template <class T>
SideStatistics<T> column_statistics(const Panels<T>& columns, const T* given, const Nats& nats,
                                    Arena& arena) {
  const auto kind = [&](int64_t place, double nats_of_kind) {
    T* lse = allocate<T>(arena, columns.panels() * PANEL);
    take_logsumexps(given + place * columns.count, columns.count, columns.order, nats_of_kind, lse);
    return row_statistics(columns, lse, given + (2 + place) * columns.count, arena);
  };
  return {kind(0, nats.positive), kind(1, nats.negative)};
}

// `nats` is nats_per_logit().
template <class T>
Statistics<T> make_statistics(const Operands<T>& operands, const Saved<T>& saved,
                              const BackwardInput& input, const Nats& nats, Arena& arena) {
  const Panels<T>&rows = operands.rows, &columns = operands.columns;
  const bool self_mode = operands.problem.self_mode;
  const Formula& formula = operands.problem.formula;
  Statistics<T> statistics{};
  const auto of_side = [&](const Panels<T>& side, const LogSumExps<T>& sums, int64_t first) {
    const auto *grad_pos = static_cast<const T*>(input.grad_lse_pos) + first,
               *grad_neg = static_cast<const T*>(input.grad_lse_neg) + first;
    return SideStatistics<T>{row_statistics(side, sums.positive, grad_pos, arena),
                             row_statistics(side, sums.negative, grad_neg, arena)};
  };
  statistics.rows = of_side(rows, saved.rows, 0);
  const bool both_sides = operands.problem.both_sides;
  statistics.columns_too = self_mode || both_sides || input.column_statistics != nullptr;
  int exponent = gradient_exponent(statistics.rows, rows.count, formula);
  const bool others = statistics.columns_too && !self_mode;
  if (others) {
    const auto* given = static_cast<const T*>(input.column_statistics);
    statistics.columns = both_sides ? of_side(columns, saved.columns, rows.count)
                                    : column_statistics(columns, given, nats, arena);
    const int of_columns = gradient_exponent(statistics.columns, columns.count, formula);
    if (of_columns > exponent) exponent = of_columns;
  }
  if (exponent == NO_EXPONENT) exponent = 0;
  // Of double, which has room for what is then left, and for the inverse of the smallest divisor.
  constexpr int MOST = 960;
  const double unit = std::ldexp(1.0, exponent < -MOST ? -MOST : exponent > MOST ? MOST : exponent);
  statistics.gradient_unit = unit;
  scale_gradients(statistics.rows, rows.panels(), formula, unit);
  if (others) scale_gradients(statistics.columns, columns.panels(), formula, unit);
  if (self_mode) statistics.columns = statistics.rows;
  return statistics;
}

// Whether a row with a gradient has one or a log-sum-exp that is not finite.
template <class T>
bool has_nonfinite(const SideStatistics<T>& side, int64_t rows) {
  for (const RowStatistics<T>* statistics : {&side.positive, &side.negative}) {
    for (int64_t row = 0; row < rows; ++row) {
      const T value = statistics->gradient[row], lse = statistics->lse[row];
      if (value != 0 && (value - value != 0 || lse - lse != 0)) return true;
    }
  }
  return false;
}

}  // namespace
}  // namespace circle_kernels
