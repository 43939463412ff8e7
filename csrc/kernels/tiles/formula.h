// The pair formulas: circle_kernels/formula.py in C++, vector in, vector out.
//
// Logits come in base 2 (times log2 e), so that exponentials are exp2. Slopes come without gamma,
// which the backward pass folds into the factor of a row, for each kind of pair its own. A pair's
// place in its tile does not matter here; programs.h has the same functions for those that look
// there.
#pragma once

#include <limits>

#include "common/problem.h"
#include "kernels/vectors/simd.h"

namespace circle_kernels {
namespace {

constexpr double LOG2_E = 1.4426950408889634074, LN_2 = 0.69314718055994530942;

// z_p = -gamma_p [O_p - s]_+ (s - Delta_p),  z_n = gamma_n [s - O_n]_+ (s - Delta_n)
// (Eq. 5 and 6)
template <class T, bool detach_weights>
struct CircleLogits {
  static constexpr bool EVALUATED = false;

  T gamma_pos_base2, gamma_neg_base2, optimum_pos, optimum_neg, margin_pos, margin_neg;

  explicit CircleLogits(const Formula& formula)
      : gamma_pos_base2(static_cast<T>(formula.gamma_pos * LOG2_E)),
        gamma_neg_base2(static_cast<T>(formula.gamma_neg * LOG2_E)),
        optimum_pos(static_cast<T>(formula.optimum_pos)),
        optimum_neg(static_cast<T>(formula.optimum_neg)),
        margin_pos(static_cast<T>(formula.margin_pos)),
        margin_neg(static_cast<T>(formula.margin_neg)) {}

  CIRCLE_INLINE Vec<T> positive(Vec<T> similarity, int64_t = 0) const {
    const Vec<T> clamped = at_most(splat(optimum_pos), similarity);
    return gamma_pos_base2 * (optimum_pos - clamped) * (margin_pos - clamped);
  }
  CIRCLE_INLINE Vec<T> negative(Vec<T> similarity, int64_t = 0) const {
    const Vec<T> clamped = at_least(splat(optimum_neg), similarity);
    return gamma_neg_base2 * (clamped - optimum_neg) * (clamped - margin_neg);
  }
  CIRCLE_INLINE Vec<T> positive_slope(Vec<T> similarity, int64_t = 0) const {
    const Vec<T> weight = at_most(splat(optimum_pos), similarity) - optimum_pos;
    if constexpr (detach_weights) return weight;
    return select<T>(similarity < optimum_pos, weight - margin_pos + similarity, Vec<T>{});
  }
  CIRCLE_INLINE Vec<T> negative_slope(Vec<T> similarity, int64_t = 0) const {
    const Vec<T> weight = at_least(splat(optimum_neg), similarity) - optimum_neg;
    if constexpr (detach_weights) return weight;
    return select<T>(similarity > optimum_neg, weight - margin_neg + similarity, Vec<T>{});
  }
};

// z_p = -gamma_p (s - Delta_p),  z_n = gamma_n (s - Delta_n)   (Eq. 1, where Delta_n is -m)
template <class T>
struct UnifiedLogits {
  static constexpr bool EVALUATED = false;

  T gamma_pos_base2, gamma_neg_base2, margin_pos, margin_neg;

  explicit UnifiedLogits(const Formula& formula)
      : gamma_pos_base2(static_cast<T>(formula.gamma_pos * LOG2_E)),
        gamma_neg_base2(static_cast<T>(formula.gamma_neg * LOG2_E)),
        margin_pos(static_cast<T>(formula.margin_pos)),
        margin_neg(static_cast<T>(formula.margin_neg)) {}

  CIRCLE_INLINE Vec<T> positive(Vec<T> similarity, int64_t = 0) const {
    return gamma_pos_base2 * (margin_pos - similarity);
  }
  CIRCLE_INLINE Vec<T> negative(Vec<T> similarity, int64_t = 0) const {
    return gamma_neg_base2 * (similarity - margin_neg);
  }
  CIRCLE_INLINE Vec<T> positive_slope(Vec<T>, int64_t = 0) const { return splat<T>(-1); }
  CIRCLE_INLINE Vec<T> negative_slope(Vec<T>, int64_t = 0) const { return splat<T>(1); }
};

// What a logit of 1 is in natural logarithms: ln 2, but for the rounding of gamma in base 2.
struct Nats {
  double positive, negative;
};

template <class Logits>
Nats nats_per_logit(const Logits& logits, const Formula& formula) {
  const auto of_kind = [](double gamma, double gamma_base2) {
    const bool normal = gamma_base2 != 0 && gamma_base2 - gamma_base2 == 0;
    return normal ? gamma / gamma_base2 : LN_2;
  };
  return {of_kind(formula.gamma_pos, logits.gamma_pos_base2),
          of_kind(formula.gamma_neg, logits.gamma_neg_base2)};
}

}  // namespace
}  // namespace circle_kernels
