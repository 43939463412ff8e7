// The register-tiled product that both passes are made of.
#pragma once

#include <type_traits>

#include "common/bfloat_products.h"
#include "kernels/vectors/transpose.h"

namespace circle_kernels {
namespace {

// What a product multiplies: numbers, or pairs of bfloat16 at neighbouring depths, the lower one in
// the lower half.
template <class E>
struct Element {
  using Sum = E;
  static constexpr int NUMBERS = 1;
};
template <>
struct Element<BFloatPair> {
  using Sum = float;
  static constexpr int NUMBERS = 2;
};

template <class E>
using Sum = typename Element<E>::Sum;

template <class E>
CIRCLE_INLINE Vec<Sum<E>> multiply_add(Vec<E> a, Vec<E> b, Vec<Sum<E>> sums) {
  if constexpr (Element<E>::NUMBERS == 1) {
    return a * b + sums;
  } else {
#if defined(__AVX512BF16__)
    return (Vec<float>)_mm512_dpbf16_ps((__m512)sums, (__m512bh)a, (__m512bh)b);
#endif
  }
}

// Rows and vectors of the register tile: as many sums as leave registers for their operands.
#if CIRCLE_VECTOR_BYTES == 64 || defined(__aarch64__)
constexpr int REGISTER_ROWS = 8, REGISTER_VECTORS = 3;
#else
constexpr int REGISTER_ROWS = 6, REGISTER_VECTORS = 2;
#endif

template <class T>
constexpr int REGISTER_COLUMNS = REGISTER_VECTORS * LANES<T>;

static_assert(PANEL % REGISTER_ROWS == 0 && PANEL % REGISTER_COLUMNS<float> == 0 &&
              PANEL % REGISTER_COLUMNS<double> == 0);

// Vectors of b that the similarities' product asks for ahead of their use, in depth: about the time
// that the last-level cache takes to answer.
constexpr int64_t AHEAD = 12;

// Looks at each vector of a product before it is stored; this one does not.
struct Ignore {
  template <class V>
  CIRCLE_INLINE void operator()(V) {}
};

// c(r, v) [+]= sum_k a(r, k) b(k, v)   for `rows` rows and `vectors` vectors of columns
//
// The product's sums begin with 0 and c's old value is added to them in the end: beginning with it
// would make one chain of roundings of all the products that a number of c is the sum of.
//
// a(r, k) lies at a[r * row_stride + k * depth_stride], or with `indices` at
// a[r * row_stride + indices[k]]; b and c have rows of PANEL. Depth counts elements.
template <class E, int rows, int vectors, int row_stride, int depth_stride, bool indexed,
          class Look = Ignore>
CIRCLE_INLINE void multiply_registers(const E* a, const int32_t* indices, const E* b, int64_t depth,
                                      Sum<E>* c, bool accumulate, Look&& look = {}) {
  using T = Sum<E>;
  // The gradient's product: the same columns of b are multiplied next with the rows of a and c that
  // follow in memory, so these are asked for, an equal part at each depth.
  constexpr bool ROWS_FOLLOW = depth_stride == 1;
  Vec<T> sums[rows][vectors];
  CIRCLE_UNROLL
  for (int row = 0; row < rows; ++row) {
    CIRCLE_UNROLL
    for (int vector = 0; vector < vectors; ++vector) {
      sums[row][vector] = Vec<T>{};
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    const E* scalars = a + (indexed ? int64_t{indices[k]} : k * depth_stride);
    Vec<E> operands[vectors];
    CIRCLE_UNROLL
    for (int vector = 0; vector < vectors; ++vector) {
      operands[vector] = load(b + k * PANEL + vector * LANES<E>);
      if (!ROWS_FOLLOW) __builtin_prefetch(b + (k + AHEAD) * PANEL + vector * LANES<E>);
    }
    if (ROWS_FOLLOW) {
      __builtin_prefetch(a + rows * (row_stride + k));
      __builtin_prefetch(c + rows * (PANEL + k * (PANEL / row_stride)));
    }
    CIRCLE_UNROLL
    for (int row = 0; row < rows; ++row) {
      const Vec<E> scalar = splat(scalars[row * row_stride]);
      CIRCLE_UNROLL
      for (int vector = 0; vector < vectors; ++vector) {
        sums[row][vector] = multiply_add<E>(scalar, operands[vector], sums[row][vector]);
      }
    }
  }
  CIRCLE_UNROLL
  for (int row = 0; row < rows; ++row) {
    CIRCLE_UNROLL
    for (int vector = 0; vector < vectors; ++vector) {
      T* to = c + row * PANEL + vector * LANES<T>;
      if (accumulate) sums[row][vector] += load(to);
      look(sums[row][vector]);
      store(to, sums[row][vector]);
    }
  }
}

// Calls `run` with the first column and the vectors of each part of a tile's columns, up to `live`:
// as wide as the register tile, the last one only as wide as it has to be.
template <class T, class Run>
CIRCLE_INLINE void for_each_part(int64_t live, Run run) {
  int64_t column = 0;
  for (; column + REGISTER_COLUMNS<T> <= live; column += REGISTER_COLUMNS<T>) {
    run(column, std::integral_constant<int, REGISTER_VECTORS>());
  }
  const int64_t rest = (live - column + LANES<T> - 1) / LANES<T>;
  if (rest == REGISTER_VECTORS) run(column, std::integral_constant<int, REGISTER_VECTORS>());
  if (rest == 2 && REGISTER_VECTORS > 2) run(column, std::integral_constant<int, 2>());
  if (rest == 1) run(column, std::integral_constant<int, 1>());
}

// Fills a symmetric tile below the diagonal from what stands above it.
template <class T>
void mirror_tile(T* tile) {
  for (int64_t row = LANES<T>; row < PANEL; row += LANES<T>) {
    for (int64_t column = 0; column < row; column += LANES<T>) {
      transpose_block(tile + column * PANEL + row, PANEL, tile + row * PANEL + column, PANEL);
    }
  }
}

// tile(i, j) = sum_d rows(d, i) columns(d, j); 0 for padding. With `symmetric` rows and columns are
// one panel, and blocks below the diagonal are copied. `look` sees what is multiplied, padding too.
template <class E, class Look = Ignore>
void similarity_tile(const E* rows,     // (depth, PANEL)
                     const E* columns,  // (depth, PANEL)
                     int64_t depth, int64_t live_rows, int64_t live_columns, bool symmetric,
                     Sum<E>* tile,  // (PANEL, PANEL)
                     Look&& look = {}) {
  // Strips of about equal depth. One of the columns' panel this deep stays in the first-level cache
  // while all rows pass, and its sums are no longer chains of roundings than those of other
  // libraries' products.
  constexpr int64_t DEEPEST = 192;
  const int64_t strips = (depth + DEEPEST - 1) / DEEPEST;
  const int64_t deep = (depth + strips - 1) / strips;
  // What the loops below leave out.
  const int64_t rows_done = (live_rows + REGISTER_ROWS - 1) / REGISTER_ROWS * REGISTER_ROWS;
  const int64_t columns_done = (live_columns + LANES<E> - 1) / LANES<E> * LANES<E>;
  for (int64_t row = 0; row < rows_done && columns_done < PANEL; ++row) {
    std::memset(tile + row * PANEL + columns_done, 0, (PANEL - columns_done) * sizeof *tile);
  }
  std::memset(tile + rows_done * PANEL, 0, (PANEL - rows_done) * PANEL * sizeof *tile);
  for (int64_t begin = 0; begin < depth; begin += deep) {
    const bool last = depth - begin <= deep;
    const int64_t strip = last ? depth - begin : deep;
    for_each_part<E>(live_columns, [&](int64_t column, auto width) {
      constexpr int VECTORS = decltype(width)::value;
      const int64_t last_row = symmetric ? column + VECTORS * LANES<E> : live_rows;
      for (int64_t row = 0; row < live_rows && row < last_row; row += REGISTER_ROWS) {
        const auto multiply = [&](auto&& look_at_sums) {
          multiply_registers<E, REGISTER_ROWS, VECTORS, 1, PANEL, false>(
              rows + begin * PANEL + row, nullptr, columns + begin * PANEL + column, strip,
              tile + row * PANEL + column, begin > 0, look_at_sums);
        };
        if (last) {
          multiply(look);
        } else {
          multiply(Ignore{});
        }
      }
    });
  }
  if (symmetric) mirror_tile(tile);
}

// Memory that will be read after a product, asked for in equal parts while it runs.
class Upcoming {
 public:
  Upcoming(const void* begin, int64_t bytes, int64_t parts)
      : next_(static_cast<const char*>(begin)),
        lines_(begin == nullptr || parts == 0 ? 0 : (bytes / LINE + parts - 1) / parts) {}

  CIRCLE_INLINE void ask() {
    for (int64_t line = 0; line < lines_; ++line) __builtin_prefetch(next_ + line * LINE, 0, 2);
    next_ += lines_ * LINE;
  }

 private:
  static constexpr int64_t LINE = 64;

  const char* next_;
  int64_t lines_;
};

template <class E, int vectors, bool indexed>
CIRCLE_INLINE void accumulate_columns(const E* panel, const int32_t* indices, const E* weights,
                                      int64_t depth, int64_t first_dim, int64_t last_dim,
                                      Sum<E>* gradient, Upcoming& upcoming) {
  constexpr int STRIDE = PANEL / Element<E>::NUMBERS;
  int64_t d = first_dim;
  for (; d + REGISTER_ROWS <= last_dim; d += REGISTER_ROWS) {
    upcoming.ask();
    multiply_registers<E, REGISTER_ROWS, vectors, STRIDE, 1, indexed>(
        panel + d * STRIDE, indices, weights, depth, gradient + d * PANEL, true);
  }
  for (; d + 2 <= last_dim; d += 2) {
    multiply_registers<E, 2, vectors, STRIDE, 1, indexed>(panel + d * STRIDE, indices, weights,
                                                          depth, gradient + d * PANEL, true);
  }
  for (; d < last_dim; ++d) {
    multiply_registers<E, 1, vectors, STRIDE, 1, indexed>(panel + d * STRIDE, indices, weights,
                                                          depth, gradient + d * PANEL, true);
  }
}

// gradient(d, i) += sum_k panel(d, k) weights(k, i)   for d in [first_dim, last_dim)
template <class E>
void accumulate_gradient(const E* panel,    // (dim, PANEL) numbers
                         const E* weights,  // (depth, PANEL)
                         int64_t depth, int64_t first_dim, int64_t last_dim, int64_t live_columns,
                         const E* next,       // (PANEL, PANEL) read afterwards, or null
                         Sum<E>* gradient) {  // (dim, PANEL)
  Upcoming upcoming(next, PANEL * PANEL * sizeof(E),
                    (last_dim - first_dim) / REGISTER_ROWS * (PANEL / REGISTER_COLUMNS<E>));
  for_each_part<E>(live_columns, [&](int64_t column, auto width) {
    accumulate_columns<E, decltype(width)::value, false>(
        panel, nullptr, weights + column, depth, first_dim, last_dim, gradient + column, upcoming);
  });
}

// The same over chosen rows of the panel only: gradient(d, i) += sum_k panel(d, indices[k]) ...
template <class T>
void accumulate_gradient_of(const T* panel, const int32_t* indices, const T* weights, int64_t depth,
                            int64_t first_dim, int64_t last_dim, int64_t live_columns,
                            T* gradient) {
  Upcoming nothing(nullptr, 0, 1);
  for_each_part<T>(live_columns, [&](int64_t column, auto width) {
    accumulate_columns<T, decltype(width)::value, true>(
        panel, indices, weights + column, depth, first_dim, last_dim, gradient + column, nothing);
  });
}

}  // namespace
}  // namespace circle_kernels
