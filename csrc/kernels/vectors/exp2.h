// A vectorised base-2 exponential.
//
// 2^x = 2^n 2^f with n the nearest integer and f in [-1/2, 1/2]; 2^f by a minimax polynomial
// (Remez, relative error 1.9e-9 in float and 3.1e-18 in double), 2^n by writing the exponent bits.
// With roundings the relative error is at most 2^-23 (float) or 2^-52 (double) for x in [LOWEST,
// HIGHEST]; tests/vectors/test_exp2.cpp holds it to that over the whole range, and found 0.67 of it
// with fused multiply-adds and 0.88 without.
//
// Below LOWEST the result is 2^LOWEST and not 0: callers keep what can come to matter far above it.
// Above HIGHEST it is 2^HIGHEST. NaN gives NaN.
#pragma once

#include "kernels/vectors/simd.h"

namespace circle_kernels {
namespace {

template <class T>
struct Exp2;

template <>
struct Exp2<float> {
  static constexpr float LOWEST = -126, HIGHEST = 126;
  // 1.5 * 2^23, and the exponent's bias: adding it rounds to an integer and leaves that, biased, in
  // the lowest bits.
  static constexpr float ROUNDER = 12582912.0f + 127;
  static constexpr int MANTISSA_BITS = 23;
  static constexpr int DEGREE = 6;
  static constexpr float COEFFICIENTS[DEGREE + 1] = {
      1.0000000005540172241f,    0.69314720573803900499f,   0.24022646891201110587f,
      0.055503287757345398042f,  0.0096184889111428256368f, 0.0013399931609708680869f,
      0.00015345822418843636373f};
};

template <>
struct Exp2<double> {
  static constexpr double LOWEST = -1022, HIGHEST = 1022;
  static constexpr double ROUNDER = 6755399441055744.0 + 1023;  // 1.5 * 2^52 and the bias
  static constexpr int MANTISSA_BITS = 52;
  static constexpr int DEGREE = 11;
  static constexpr double COEFFICIENTS[DEGREE + 1] = {
      0.9999999999999999971,    0.69314718055994533045,     0.24022650695910156208,
      0.055504108664819922071,  0.0096181291075883339717,   0.001333355814678984728,
      0.0001540353046251590152, 0.000015252733490040541804, 1.321543308898366508e-6,
      1.0178198004833684788e-7, 7.0741057273785042419e-9,   4.4352847841887902929e-10};
};

// With `clamped` false, for x known to lie in [LOWEST, HIGHEST]; others give anything.
template <class T, bool clamped = true>
CIRCLE_INLINE Vec<T> exp2(Vec<T> x) {
  using Constants = Exp2<T>;
  if (clamped) x = at_least(splat<T>(Constants::LOWEST), at_most(splat<T>(Constants::HIGHEST), x));
  const Vec<T> rounded = x + Constants::ROUNDER;
  const Vec<T> fraction = x - (rounded - Constants::ROUNDER);
  Vec<T> power = splat<T>(Constants::COEFFICIENTS[Constants::DEGREE]);
  CIRCLE_UNROLL
  for (int term = Constants::DEGREE - 1; term >= 0; --term) {
    power = power * fraction + Constants::COEFFICIENTS[term];
  }
  // Shifting drops everything above the integer.
  const Vec<Int<T>> bits = (Vec<Int<T>>)rounded << Constants::MANTISSA_BITS;
  return power * (Vec<T>)bits;  // a product, not integer arithmetic, so that NaN stays NaN
}

}  // namespace
}  // namespace circle_kernels
