// The natural exponential over its whole range: 0 and infinity at its ends, NaN of NaN.
//
// e^x = 2^n e^r with n the nearest integer to x log2 e, and r = x - n ln 2 in two parts, so that
// the relative error stays a few roundings for large x as well.
#pragma once

#include "kernels/vectors/exp2.h"

namespace circle_kernels {
namespace {

template <class T>
struct Exp;

template <>
struct Exp<float> {
  static constexpr float FARTHEST = 120;  // beyond 0 and infinity
  static constexpr float LN_2_HIGH = 0.693359375f, LN_2_LOW = -2.12194440e-4f;
};

template <>
struct Exp<double> {
  static constexpr double FARTHEST = 750;
  static constexpr double LN_2_HIGH = 6.93147180369123816490e-01;
  static constexpr double LN_2_LOW = 1.90821492927058770002e-10;
};

// 2^n of integers inside the exponent's range.
template <class T>
CIRCLE_INLINE Vec<T> power_of_two(Vec<T> n) {
  return (Vec<T>)((Vec<Int<T>>)(n + Exp2<T>::ROUNDER) << Exp2<T>::MANTISSA_BITS);
}

template <class T>
CIRCLE_INLINE Vec<T> nearest_integer(Vec<T> x) {
  return x + Exp2<T>::ROUNDER - Exp2<T>::ROUNDER;
}

template <class T>
CIRCLE_INLINE Vec<T> exp(Vec<T> x) {
  constexpr T LOG2_OF_E = static_cast<T>(1.4426950408889634074), HALF = T(0.5);
  const T farthest = Exp<T>::FARTHEST;
  x = at_least(splat(-farthest), at_most(splat(farthest), x));
  const Vec<T> n = nearest_integer<T>(x * LOG2_OF_E);
  const Vec<T> rest = x - n * Exp<T>::LN_2_HIGH - n * Exp<T>::LN_2_LOW;
  const Vec<T> half = nearest_integer<T>(n * HALF);
  return exp2<T, false>(rest * LOG2_OF_E) * power_of_two<T>(half) * power_of_two<T>(n - half);
}

}  // namespace
}  // namespace circle_kernels
