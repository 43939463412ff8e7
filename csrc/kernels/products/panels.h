// Embeddings in panels: 96 rows side by side, so that kernels read vectors of rows.
//
// One layout serves every product. In panel[d][row] the similarity product reads 8 rows (as
// scalars) against vectors of rows, depth d; the gradient product reads 8 values of d against
// vectors of rows of G, depth row, and its result is a panel again.
#pragma once

#include <cmath>

#include "common/order/classes.h"
#include "common/problem.h"
#include "kernels/vectors/scalars.h"
#include "kernels/vectors/transpose.h"

namespace circle_kernels {
namespace {

constexpr double NORM_EPS = 1e-12;  // as torch.nn.functional.normalize

template <class T>
struct Panels {
  int64_t count;  // embeddings, without padding
  int64_t dim;
  const int64_t* order;     // (count,) panel row -> row as given; null where they are the same
  T* values;                // (panels held, depth, PANEL), over their norms; 0 for padding
  T* divisors;              // (panels, PANEL) max(|x|, eps), or 1; NaN for a row that is not finite
  const Int<T>* class_ids;  // (panels, PANEL) ascending; NO_CLASS for padding
  int64_t depth;            // values of d held
  int64_t first = 0;        // of the panels held
  int64_t first_dim = 0;    // of the values of d held

  int64_t panels() const { return panels_of(count); }
  T* panel(int64_t index) const { return values + (index - first) * depth * PANEL; }
  int64_t caller_row(int64_t row) const { return order != nullptr ? order[row] : row; }
  // Rows of a panel that are not padding.
  int64_t live(int64_t index) const {
    const int64_t rest = count - index * PANEL;
    return rest < PANEL ? rest : PANEL;
  }
  bool padded(int64_t index) const { return live(index) < PANEL; }
  Int<T> first_class(int64_t index) const { return class_ids[index * PANEL]; }
  Int<T> last_class(int64_t index) const { return class_ids[index * PANEL + live(index) - 1]; }
  // Whether a panel has a member of a class from `lowest` to `highest`.
  bool any_class_in(int64_t index, Int<T> lowest, Int<T> highest) const {
    if (last_class(index) < lowest || highest < first_class(index)) return false;
    const Int<T>* begin = class_ids + index * PANEL;
    int64_t low = 0, high = live(index) - 1;  // of the first class that is at least `lowest`
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      begin[middle] < lowest ? low = middle + 1 : high = middle;
    }
    return begin[low] <= highest;
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

// Finds the divisors of PACKED_ROWS rows of a panel, from `begin_row` on. That of a row with a NaN
// or an infinity, or whose norm is one, is NaN: results that saw it are made NaN afterwards.
template <class T, class S>
void measure_rows(const Embeddings& side, bool normalize, int64_t index, int64_t begin_row,
                  const Panels<T>& panels) {
  const S* values = static_cast<const S*>(side.values);
  const int64_t live = panels.live(index);
  T* divisors = panels.divisors + index * PANEL;
  for (int64_t row = begin_row; row < begin_row + PACKED_ROWS; ++row) {
    divisors[row] = 1;
    if (row >= live) continue;
    const double length = norm(values + panels.caller_row(index * PANEL + row) * side.row_stride,
                               side.dim_stride, panels.dim);
    if (!(length <= std::numeric_limits<T>::max())) {
      divisors[row] = std::numeric_limits<T>::quiet_NaN();
    } else if (normalize) {
      divisors[row] = static_cast<T>(length > NORM_EPS ? length : NORM_EPS);
    }
  }
}

// Fills PACKED_ROWS rows of a panel, from `begin_row` on, with `depth` of the values of d that it
// holds. A row that is not finite becomes zeros, and tiles need not look for it.
template <class T, class S>
void pack_rows(const Embeddings& side, int64_t index, int64_t begin_row, int64_t depth,
               const Panels<T>& panels) {
  static_assert(PACKED_ROWS % LANES<T> == 0);
  const S* values = static_cast<const S*>(side.values) + panels.first_dim * side.dim_stride;
  const int64_t live = panels.live(index);
  T* panel = panels.panel(index);
  const T* divisors = panels.divisors + index * PANEL;

  const int64_t end_row = begin_row + PACKED_ROWS;
  const S* rows[PANEL];
  for (int64_t row = begin_row; row < end_row; ++row) {
    const bool present = row < live && divisors[row] == divisors[row];
    rows[row] =
        present ? values + panels.caller_row(index * PANEL + row) * side.row_stride : nullptr;
  }

  T strip[LANES<T>][STRIP];
  T block[LANES<T>][LANES<T>];
  for (int64_t row = begin_row; row < end_row; row += LANES<T>) {
    for (int64_t begin = 0; begin < depth; begin += STRIP) {
      const int64_t count = depth - begin < STRIP ? depth - begin : STRIP;
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
// ones: dx = (g - x <x, g>) / |x|, where g is in units of `gradient_unit`.
template <class T>
class Projection {
 public:
  // Adds `depth` values of d to the products; panels at the first of the embeddings.
  //
  // In double, and over <x, x>, which rounding has made only nearly 1: so what is left has no part
  // along x, also where it is small against what is taken away.
  void add(const T* values, const T* gradient, int64_t depth) {
    Doubled<T> along = along_, square = square_;
    for (int64_t d = 0; d < depth; ++d) {
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
    along_ = along;
    square_ = square;
  }
  void add(const Projection& other) {
    for (int part = 0; part < Doubled<T>::PARTS; ++part) {
      along_.parts[part] += other.along_.parts[part];
      square_.parts[part] += other.square_.parts[part];
    }
  }
  // Once all are added.
  void finish(const T* divisors, double gradient_unit) {
    const Doubled<T> divisor = Doubled<T>::load(divisors);
    for (int part = 0; part < Doubled<T>::PARTS; ++part) {
      inverse_.parts[part] = gradient_unit / divisor.parts[part];
      // Below eps the divisor is a constant and there is nothing to project out.
      along_.parts[part] = select<double>(divisor.parts[part] <= double{static_cast<T>(NORM_EPS)},
                                          Vec<double>{}, along_.parts[part] / square_.parts[part]);
    }
  }

  CIRCLE_INLINE void at(const T* values, const T* gradient, T* result) const {
    const Doubled<T> value = Doubled<T>::load(values);
    Doubled<T> slope = Doubled<T>::load(gradient);
    CIRCLE_UNROLL
    for (int part = 0; part < Doubled<T>::PARTS; ++part) {
      slope.parts[part] =
          (slope.parts[part] - value.parts[part] * along_.parts[part]) * inverse_.parts[part];
    }
    slope.store(result);
  }

 private:
  // Panel rows asked for ahead of their use.
  static constexpr int64_t AHEAD = 16;

  Doubled<T> along_{}, square_{}, inverse_{};
};

// `depth` of the values of d that a panel holds, of LANES rows of the gradient from `row` on, as
// the caller wants them. The projection counts if embeddings were normalised; it is copied, as
// logits are in sum_tile.
template <class T, class S>
void unpack_rows(const Panels<T>& panels, bool normalize, Projection<T> projection, int64_t index,
                 int64_t row, int64_t depth,
                 const T* gradient,  // (depth, PANEL), in units of `gradient_unit`, a power of two
                 double gradient_unit,
                 S* output) {  // (count, dim), contiguous
  const int64_t live = panels.live(index);
  const T* panel = panels.panel(index);
  const T* divisors = panels.divisors + index * PANEL;

  T block[LANES<T>][LANES<T>] = {}, strip[LANES<T>][STRIP];
  for (int64_t begin = 0; begin < depth; begin += STRIP) {
    const int64_t count = depth - begin < STRIP ? depth - begin : STRIP;
    for (int64_t first = 0; first < count; first += LANES<T>) {
      for (int64_t d = first; d < first + LANES<T> && d < count; ++d) {
        const int64_t at = (begin + d) * PANEL + row;
        if (normalize) {
          projection.at(panel + at, gradient + at, block[d - first]);
        } else {
          Doubled<T> slope = Doubled<T>::load(gradient + at);
          for (Vec<double>& part : slope.parts) part *= gradient_unit;
          slope.store(block[d - first]);
        }
      }
      // The rest of the block is not looked at.
      transpose_block(&block[0][0], LANES<T>, &strip[0][first], STRIP);
    }
    for (int64_t lane = 0; lane < LANES<T> && row + lane < live; ++lane) {
      const int64_t caller_row = panels.caller_row(index * PANEL + row + lane);
      S* to = output + caller_row * panels.dim + panels.first_dim + begin;
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

// PACKED_ROWS rows of a panel of the gradient, from `begin_row` on, of panels that hold all of d.
template <class T, class S>
void unpack_gradient(
    const Panels<T>& panels, bool normalize, int64_t index, int64_t begin_row,
    const T* gradient,  // (dim, PANEL), in units of `gradient_unit`, a power of two
    double gradient_unit,
    S* output) {  // (count, dim), contiguous
  const int64_t live = panels.live(index);
  for (int64_t row = begin_row; row < live && row < begin_row + PACKED_ROWS; row += LANES<T>) {
    Projection<T> projection;
    if (normalize) {
      projection.add(panels.panel(index) + row, gradient + row, panels.dim);
      projection.finish(panels.divisors + index * PANEL + row, gradient_unit);
    }
    unpack_rows(panels, normalize, projection, index, row, panels.dim, gradient, gradient_unit,
                output);
  }
}

}  // namespace
}  // namespace circle_kernels
