#include "common/row_losses.h"

#include <cmath>
#include <limits>

namespace circle_kernels {

template <class T>
void row_losses(const T* lse_pos, const T* lse_neg, int64_t rows, Reduction reduction, T* loss,
                T* slopes) {
  const bool nonzero = reduction == Reduction::mean_nonzero;
  double total = 0;
  int64_t valid = 0;
  for (int64_t row = 0; row < rows; ++row) {
    const T exponent = lse_pos[row] + lse_neg[row];
    const T small = std::exp(-std::abs(exponent));  // never overflows; NaN stays NaN
    const T row_loss = (exponent > 0 ? exponent : T(0)) + std::log1p(small);
    slopes[row] = (exponent >= 0 ? T(1) : small) / (1 + small);
    if (nonzero && row_loss == 0) {
      slopes[row] = 0;
      continue;
    }
    valid += exponent != -std::numeric_limits<T>::infinity();
    if (reduction == Reduction::none) {
      loss[row] = row_loss;
    } else {
      total += row_loss;
    }
  }
  if (reduction == Reduction::none) return;
  int64_t count = 1;
  if (reduction == Reduction::mean || nonzero) count = valid;
  if (reduction == Reduction::mean_all) count = rows;
  const double share = count > 1 ? 1 / static_cast<double>(count) : 1;
  *loss = static_cast<T>(count > 1 ? total / static_cast<double>(count) : total);
  for (int64_t row = 0; row < rows; ++row) slopes[row] = static_cast<T>(slopes[row] * share);
}

template void row_losses(const float*, const float*, int64_t, Reduction, float*, float*);
template void row_losses(const double*, const double*, int64_t, Reduction, double*, double*);

}  // namespace circle_kernels
