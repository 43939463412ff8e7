// Embeddings in panels: 96 rows side by side, so that kernels read vectors of rows.
//
// One layout serves every product. In panel[d][row] the similarity product reads 8 rows (as
// scalars) against vectors of rows, depth d; the gradient product reads 8 values of d against
// vectors of rows of G, depth row, and its result is a panel again.
#pragma once

#include <cmath>

#include "classes.h"
#include "problem.h"
#include "scalars.h"
#include "transpose.h"

namespace circle_kernels {
namespace {

constexpr double NORM_EPS = 1e-12;  // as torch.nn.functional.normalize

template <class T>
struct Panels {
  int64_t count;  // embeddings, without padding
  int64_t dim;
  const int64_t* order;     // (count,) panel row -> row as given; null where they are the same
  T* values;                // (panels held, dim, PANEL), over their norms; 0 for padding
  T* divisors;              // (panels, PANEL) max(|x|, eps), or 1; NaN for a row that is not finite
  const Int<T>* class_ids;  // (panels, PANEL) ascending; NO_CLASS for padding
  int64_t first = 0;        // of the panels held

  int64_t panels() const { return panels_of(count); }
  T* panel(int64_t index) const { return values + (index - first) * dim * PANEL; }
  int64_t given(int64_t row) const { return order != nullptr ? order[row] : row; }
  // Rows of a panel that are not padding.
  int64_t live(int64_t index) const {
    const int64_t left = count - index * PANEL;
    return left < PANEL ? left : PANEL;
  }
  bool padded(int64_t index) const { return live(index) < PANEL; }
  Int<T> first_class(int64_t index) const { return class_ids[index * PANEL]; }
  Int<T> last_class(int64_t index) const { return class_ids[index * PANEL + live(index) - 1]; }
  // Whether a panel has a member of a class from `lowest` to `highest`.
  bool any_class_in(int64_t index, Int<T> lowest, Int<T> highest) const {
    if (last_class(index) < lowest || highest < first_class(index)) return false;
    const Int<T>* begin = class_ids + index * PANEL;
    int64_t left = 0, right = live(index) - 1;  // of the first class that is at least `lowest`
    while (left < right) {
      const int64_t middle = (left + right) / 2;
      begin[middle] < lowest ? left = middle + 1 : right = middle;
    }
    return begin[left] <= highest;
  }
};

// Values of d handled at a time: a strip of LANES rows stays in the first-level cache.
constexpr int64_t STRIP = 64;

// Calls `run` with a function from d to a row's value, which knows about a stride of 1: compilers
// make vectors of that.
template <class S, class Run>
CIRCLE_INLINE void with_values(const S* row, int64_t stride, Run run) {
  if (stride == 1) {
    run([=](int64_t d) { return widen(row[d]); });
  } else {
    run([=](int64_t d) { return widen(row[d * stride]); });
  }
}

// The Euclidean norm. Squares are summed in double, so those of float inputs cannot overflow; in
// eight sums, which the compiler may vectorise, in an order that never changes.
template <class S>
double norm(const S* row, int64_t stride, int64_t dim) {
  constexpr int SUMS = 8;
  double squares[SUMS] = {};
  with_values(row, stride, [&](auto value) {
    int64_t d = 0;
    for (; d + SUMS <= dim; d += SUMS) {
      for (int lane = 0; lane < SUMS; ++lane) {
        const double each = value(d + lane);
        squares[lane] += each * each;
      }
    }
    for (; d < dim; ++d) {
      const double each = value(d);
      squares[0] += each * each;
    }
  });
  double total = 0;
  for (const double square : squares) total += square;
  return std::sqrt(total);
}

// Rows that one thread packs or unpacks at a time: of a small batch, whole panels would leave
// threads without work.
constexpr int64_t PACKED_ROWS = 32;
static_assert(PANEL % PACKED_ROWS == 0);

// Fills PACKED_ROWS rows of a panel, from `begin_row` on. A row with a NaN or an infinity, or whose
// norm is one, becomes zeros with the divisor NaN: results that saw it are made NaN afterwards, and
// tiles need not look for it.
template <class T, class S>
void pack_rows(const Embeddings& side, bool normalize, int64_t index, int64_t begin_row,
               Panels<T>& panels) {
  static_assert(PACKED_ROWS % LANES<T> == 0);
  const S* values = static_cast<const S*>(side.values);
  const int64_t dim = panels.dim, live = panels.live(index);
  T* panel = panels.panel(index);
  T* divisors = panels.divisors + index * PANEL;

  const int64_t end_row = begin_row + PACKED_ROWS;
  const S* rows[PANEL];
  for (int64_t row = begin_row; row < end_row; ++row) {
    rows[row] = nullptr;
    divisors[row] = 1;
    if (row >= live) continue;
    const S* from = values + panels.given(index * PANEL + row) * side.row_stride;
    const double length = norm(from, side.dim_stride, dim);
    if (!(length <= std::numeric_limits<T>::max())) {
      divisors[row] = std::numeric_limits<T>::quiet_NaN();
      continue;
    }
    if (normalize) divisors[row] = static_cast<T>(length > NORM_EPS ? length : NORM_EPS);
    rows[row] = from;
  }

  T strip[LANES<T>][STRIP];
  T block[LANES<T>][LANES<T>];
  for (int64_t row = begin_row; row < end_row; row += LANES<T>) {
    for (int64_t begin = 0; begin < dim; begin += STRIP) {
      const int64_t count = dim - begin < STRIP ? dim - begin : STRIP;
      for (int lane = 0; lane < LANES<T>; ++lane) {
        if (rows[row + lane] == nullptr) {
          for (int64_t d = 0; d < STRIP; ++d) strip[lane][d] = 0;
          continue;
        }
        const T divisor = divisors[row + lane];
        with_values(rows[row + lane] + begin * side.dim_stride, side.dim_stride, [&](auto value) {
          for (int64_t d = 0; d < count; ++d) strip[lane][d] = value(d) / divisor;
        });
      }
      for (int64_t d = 0; d < count; d += LANES<T>) {
        T* to = panel + (begin + d) * PANEL + row;
        if (count - d >= LANES<T>) {
          transpose_block(&strip[0][d], STRIP, to, PANEL);
          continue;
        }
        transpose_block(&strip[0][d], STRIP, &block[0][0], LANES<T>);
        for (int64_t rest = 0; rest < count - d; ++rest) {
          store(to + rest * PANEL, load(block[rest]));
        }
      }
    }
  }
}

// The gradient with respect to LANES embeddings as given, from that with respect to the normalised
// ones: dx = (g - x <x, g>) / |x|, where g is in units of `unit`.
template <class T>
class Projection {
 public:
  // Panels at the first of the embeddings.
  Projection(const T* values, const T* gradient, const T* divisors, int64_t dim, double unit)
      : values_(values), gradient_(gradient), unit_(unit) {
    // In double, and over <x, x>, which rounding has made only nearly 1: so what is left has no
    // part along x, also where it is small against what is taken away.
    Doubled<T> along{}, square{};
    for (int64_t d = 0; d < dim; ++d) {
      const Doubled<T> value = Doubled<T>::load(values + d * PANEL);
      const Doubled<T> slope = Doubled<T>::load(gradient + d * PANEL);
      __builtin_prefetch(values + (d + AHEAD) * PANEL);
      __builtin_prefetch(gradient + (d + AHEAD) * PANEL);
      CIRCLE_UNROLL
      for (int part = 0; part < Doubled<T>::PARTS; ++part) {
        along.parts[part] += value.parts[part] * slope.parts[part];
        square.parts[part] += value.parts[part] * value.parts[part];
      }
    }
    const Doubled<T> divisor = Doubled<T>::load(divisors);
    for (int part = 0; part < Doubled<T>::PARTS; ++part) {
      inverse_.parts[part] = 1 / divisor.parts[part];
      // Below eps the divisor is a constant and there is nothing to project out.
      along_.parts[part] = select<double>(divisor.parts[part] <= double{static_cast<T>(NORM_EPS)},
                                          Vec<double>{}, along.parts[part] / square.parts[part]);
    }
  }

  CIRCLE_INLINE void at(int64_t d, T* result) const {
    const Doubled<T> value = Doubled<T>::load(values_ + d * PANEL);
    Doubled<T> slope = Doubled<T>::load(gradient_ + d * PANEL);
    CIRCLE_UNROLL
    for (int part = 0; part < Doubled<T>::PARTS; ++part) {
      slope.parts[part] = (slope.parts[part] - value.parts[part] * along_.parts[part]) *
                          inverse_.parts[part] * unit_;
    }
    slope.store(result);
  }

 private:
  // Panel rows asked for ahead of their use.
  static constexpr int64_t AHEAD = 16;

  const T *values_, *gradient_;
  const double unit_;
  Doubled<T> along_, inverse_;
};

// PACKED_ROWS rows of a panel of the gradient, as the caller wants them.
template <class T, class S>
void unpack_gradient(const Panels<T>& panels, bool normalize, int64_t index, int64_t begin_row,
                     const T* gradient,  // (dim, PANEL), in units of `unit`, a power of two
                     double unit,
                     S* output) {  // (count, dim), contiguous
  const int64_t dim = panels.dim, live = panels.live(index);
  const T* panel = panels.panel(index);
  const T* divisors = panels.divisors + index * PANEL;
  const int64_t end_row = begin_row + PACKED_ROWS;

  T block[LANES<T>][LANES<T>] = {}, strip[LANES<T>][STRIP];
  for (int64_t row = begin_row; row < live && row < end_row; row += LANES<T>) {
    const Projection<T> projection(panel + row, gradient + row, divisors + row, normalize ? dim : 0,
                                   unit);
    for (int64_t begin = 0; begin < dim; begin += STRIP) {
      const int64_t count = dim - begin < STRIP ? dim - begin : STRIP;
      for (int64_t first = 0; first < count; first += LANES<T>) {
        for (int64_t d = first; d < first + LANES<T> && d < count; ++d) {
          if (normalize) {
            projection.at(begin + d, block[d - first]);
          } else {
            Doubled<T> slope = Doubled<T>::load(gradient + (begin + d) * PANEL + row);
            for (Vec<double>& part : slope.parts) part *= unit;
            slope.store(block[d - first]);
          }
        }
        // The rest of the block is not looked at.
        transpose_block(&block[0][0], LANES<T>, &strip[0][first], STRIP);
      }
      for (int64_t lane = 0; lane < LANES<T> && row + lane < live; ++lane) {
        const int64_t given = panels.given(index * PANEL + row + lane);
        S* to = output + given * dim + begin;
        T* values = strip[lane];
        const T divisor = divisors[row + lane];
        if (normalize && divisor <= static_cast<T>(NORM_EPS)) {
          // The gradient of a zero vector is huge; a narrow type must not make it infinite.
          for (int64_t d = 0; d < count; ++d) {
            values[d] = values[d] > Largest<S>::value    ? Largest<S>::value
                        : values[d] < -Largest<S>::value ? -Largest<S>::value
                                                         : values[d];
          }
        } else if (!(divisor == divisor)) {
          for (int64_t d = 0; d < count; ++d) values[d] = divisor;
        }
        for (int64_t d = 0; d < count; ++d) narrow(values[d], to[d]);
      }
    }
  }
}

}  // namespace
}  // namespace circle_kernels
