// Functions that formulas are made of, over their whole range: a few roundings from the exact
// result; where the standard library has an infinity or NaN, so have these.
#pragma once

#include <cmath>
#include <limits>

#include "kernels/vectors/exp.h"

namespace circle_kernels {
namespace {

template <class T>
CIRCLE_INLINE Vec<T> magnitude(Vec<T> x) {
  return (Vec<T>)((Vec<Int<T>>)x & ~(Vec<Int<T>>)splat(T(-0.0)));
}

template <class T>
struct Log;

// Coefficients of log((1 + s) / (1 - s)) beyond 2 s, in powers of s^2 (fdlibm).
template <>
struct Log<float> {
  static constexpr float SMALLEST_NORMAL = 0x1p-126f, SCALE = 0x1p25f, OCTAVES = 25;
  static constexpr int TERMS = 4;
  static constexpr float COEFFICIENTS[TERMS] = {0.66666662693f, 0.40000972152f, 0.28498786688f,
                                                0.24279078841f};
};

template <>
struct Log<double> {
  static constexpr double SMALLEST_NORMAL = 0x1p-1022, SCALE = 0x1p54, OCTAVES = 54;
  static constexpr int TERMS = 7;
  static constexpr double COEFFICIENTS[TERMS] = {6.666666666666735130e-01, 3.999999999940941908e-01,
                                                 2.857142874366239149e-01, 2.222219843214978396e-01,
                                                 1.818357216161805012e-01, 1.531383769920937332e-01,
                                                 1.479819860511658591e-01};
};

// x = 2^n (1 + f) with 1 + f from sqrt(1/2) to sqrt(2), and s = f / (2 + f).
template <class T>
CIRCLE_INLINE Vec<T> log(Vec<T> x) {
  using Constants = Log<T>;
  constexpr int MANTISSA = Exp2<T>::MANTISSA_BITS;
  const Vec<T> given = x;
  x = magnitude<T>(x);
  const Vec<Int<T>> subnormal = x < Constants::SMALLEST_NORMAL;
  x = select<T>(subnormal, x * Constants::SCALE, x);
  // The exponent of x / sqrt(1/2), and what is left, from the bits.
  const auto root_half = (Vec<Int<T>>)splat(static_cast<T>(0.70710678118654752440));
  const Vec<Int<T>> bits = (Vec<Int<T>>)x - root_half;
  const Vec<Int<T>> exponent = bits >> MANTISSA;
  constexpr Int<T> FRACTION = (Int<T>{1} << MANTISSA) - 1;
  const Vec<Int<T>> mantissa = (bits & FRACTION) + root_half;
  Vec<T> n = __builtin_convertvector(exponent, Vec<T>);
  n = select<T>(subnormal, n - Constants::OCTAVES, n);
  const Vec<T> f = (Vec<T>)mantissa - T(1);
  const Vec<T> s = f / (T(2) + f), square = s * s, half_square = f * f * T(0.5);
  Vec<T> rest = splat(Constants::COEFFICIENTS[Constants::TERMS - 1]);
  CIRCLE_UNROLL
  for (int term = Constants::TERMS - 2; term >= 0; --term) {
    rest = rest * square + Constants::COEFFICIENTS[term];
  }
  const Vec<T> small = s * (half_square + rest * square) + n * Exp<T>::LN_2_LOW;
  const Vec<T> result = n * Exp<T>::LN_2_HIGH - ((half_square - small) - f);
  constexpr T INFINITY_OF_T = std::numeric_limits<T>::infinity();
  const Vec<T> finite_or_end = select<T>(given < INFINITY_OF_T, result, given);  // NaN, infinity
  const Vec<T> at_zero = select<T>(given == 0, splat(-INFINITY_OF_T), finite_or_end);
  return select<T>(given < 0, splat(std::numeric_limits<T>::quiet_NaN()), at_zero);
}

// log u with the rounding of u = 1 + x made good (Kahan).
template <class T>
CIRCLE_INLINE Vec<T> log1p(Vec<T> x) {
  const Vec<T> sum = x + T(1), rounded = sum - T(1);
  const Vec<T> result = log<T>(sum) * (x / rounded);
  const Vec<Int<T>> as_it_is = (rounded == 0) | (x == std::numeric_limits<T>::infinity());
  return select<T>(as_it_is, x, result);
}

// e^x - 1 where that cancels by x / log(e^x), which has e^x's rounding, too (Kahan).
template <class T>
CIRCLE_INLINE Vec<T> expm1(Vec<T> x) {
  const Vec<T> power = exp<T>(x), difference = power - T(1);
  const Vec<T> result = difference * (x / log<T>(power));
  const Vec<Int<T>> near_zero = (x > T(-0.5)) & (x < T(0.5));
  return select<T>(near_zero, select<T>(power == 1, x, result), difference);
}

template <class T>
CIRCLE_INLINE Vec<T> tanh(Vec<T> x) {
  constexpr T FARTHEST = 20;  // beyond 1
  const Vec<T> distance = at_most(splat(FARTHEST), magnitude<T>(x));
  const Vec<T> grown = expm1<T>(distance * T(2));
  const Vec<T> result = grown / (grown + T(2));
  const Vec<Int<T>> sign = (Vec<Int<T>>)x & (Vec<Int<T>>)splat(T(-0.0));
  return (Vec<T>)((Vec<Int<T>>)result | sign);
}

// sin and cos on [-pi/4, pi/4] in powers of r^2, and pi/2 in three parts (Cephes).
template <class T>
struct Circular;

template <>
struct Circular<float> {
  static constexpr float HALF_PI[3] = {1.5703125f, 4.837512969970703125e-4f,
                                       7.54978995489188216e-8f};
  static constexpr int TERMS = 3;
  static constexpr float SINE[TERMS] = {-1.9515295891e-4f, 8.3321608736e-3f, -1.6666654611e-1f};
  static constexpr float COSINE[TERMS] = {2.443315711809948e-5f, -1.388731625493765e-3f,
                                          4.166664568298827e-2f};
};

template <>
struct Circular<double> {
  static constexpr double HALF_PI[3] = {1.57079625129699707031, 7.54978941586159635335e-8,
                                        5.39030285815811905290e-15};
  static constexpr int TERMS = 6;
  static constexpr double SINE[TERMS] = {1.58962301576546568060e-10, -2.50507477628578072866e-8,
                                         2.75573136213857245213e-6,  -1.98412698295895385996e-4,
                                         8.33333333332211858878e-3,  -1.66666666666666307295e-1};
  static constexpr double COSINE[TERMS] = {-1.13585365213876817300e-11, 2.08757008419747316778e-9,
                                           -2.75573141792967388112e-7,  2.48015872888517045348e-5,
                                           -1.38888888888730564116e-3,  4.16666666666665929218e-2};
};

// As far as the parts of pi/2 reach without the roundings of their multiples being felt.
constexpr int MOST_TURNED = 100;

// sin(x + quarters pi/2), where |x| is at most MOST_TURNED.
template <class T>
CIRCLE_INLINE Vec<T> sine(Vec<T> x, int quarters) {
  using Constants = Circular<T>;
  const Vec<T> n = nearest_integer<T>(x * static_cast<T>(0.63661977236758134308));
  const Vec<T> r =
      x - n * Constants::HALF_PI[0] - n * Constants::HALF_PI[1] - n * Constants::HALF_PI[2];
  const Vec<T> square = r * r;
  Vec<T> sine = splat(Constants::SINE[0]), cosine = splat(Constants::COSINE[0]);
  CIRCLE_UNROLL
  for (int term = 1; term < Constants::TERMS; ++term) {
    sine = sine * square + Constants::SINE[term];
    cosine = cosine * square + Constants::COSINE[term];
  }
  sine = sine * square * r + r;
  cosine = cosine * square * square - square * T(0.5) + T(1);
  const Vec<Int<T>> quarter =
      __builtin_convertvector(n, Vec<Int<T>>) + static_cast<Int<T>>(quarters);
  const Vec<T> result = select<T>((quarter & 1) != 0, cosine, sine);
  return select<T>((quarter & 2) != 0, -result, result);
}

}  // namespace
}  // namespace circle_kernels
