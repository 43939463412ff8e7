// Transposing blocks of a matrix in registers.
#pragma once

#include <utility>

#include "kernels/vectors/simd.h"

namespace circle_kernels {
namespace {

#if defined(__clang__)
#define CIRCLE_SHUFFLE(T, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define CIRCLE_SHUFFLE(T, a, b, ...) __builtin_shuffle(a, b, (Vec<Int<T>>){__VA_ARGS__})
#endif

// Exchanges the off-diagonal quarters of every 2 distance x 2 distance block of which `upper` and
// `lower` are rows `distance` apart.
template <class T, int distance, int... lane>
CIRCLE_INLINE void exchange(Vec<T>& upper, Vec<T>& lower, std::integer_sequence<int, lane...>) {
  constexpr int WIDTH = LANES<T>;
  const Vec<T> first =
      CIRCLE_SHUFFLE(T, upper, lower, ((lane & distance) == 0 ? lane : WIDTH + lane - distance)...);
  lower =
      CIRCLE_SHUFFLE(T, upper, lower, ((lane & distance) == 0 ? lane + distance : WIDTH + lane)...);
  upper = first;
}

template <class T, int distance>
CIRCLE_INLINE void exchange_all(Vec<T> (&rows)[LANES<T>]) {
  CIRCLE_UNROLL
  for (int row = 0; row < LANES<T>; ++row) {
    if ((row & distance) == 0) {
      exchange<T, distance>(rows[row], rows[row + distance],
                            std::make_integer_sequence<int, LANES<T>>());
    }
  }
  if constexpr (2 * distance < LANES<T>) exchange_all<T, 2 * distance>(rows);
}

// A block of LANES x LANES: to(c, r) = from(r, c). Strides count elements between rows.
template <class T>
CIRCLE_INLINE void transpose_block(const T* from, int64_t from_stride, T* to, int64_t to_stride) {
  Vec<T> rows[LANES<T>];
  CIRCLE_UNROLL
  for (int row = 0; row < LANES<T>; ++row) rows[row] = load(from + row * from_stride);
  exchange_all<T, 1>(rows);
  CIRCLE_UNROLL
  for (int row = 0; row < LANES<T>; ++row) store(to + row * to_stride, rows[row]);
}

}  // namespace
}  // namespace circle_kernels
