// All passes for one instruction set: what a translation unit in kernels/ compiles.
//
// The unit defines CIRCLE_LEVEL (its namespace) and CIRCLE_VECTOR_BYTES. Code shared by all units
// (ordering, memory) is compiled once, without their flags, and called through plain functions.
#pragma once

#include <type_traits>

#include "common/dispatch.h"
#include "kernels/backward/backward_pass.h"
#include "kernels/backward/scale_pass.h"
#include "kernels/counting/count_pass.h"
#include "kernels/forward/forward_pass.h"
#include "kernels/forward/known_sums.h"
#include "kernels/tiles/programs.h"

namespace circle_kernels {
namespace {

// Calls `run` with the type computed in and the formula's logits; what it returns.
template <class Run>
bool with_logits(const Problem& problem, Run run) {
  const auto typed = [&](auto zero) {
    using T = decltype(zero);
    if (problem.formula.kind == FormulaKind::unified) {
      return run(zero, UnifiedLogits<T>(problem.formula));
    }
    if (problem.formula.kind == FormulaKind::functions) {
      return run(zero, ProgramLogits<T>(problem.formula));
    }
    return problem.formula.detach_weights ? run(zero, CircleLogits<T, true>(problem.formula))
                                          : run(zero, CircleLogits<T, false>(problem.formula));
  };
  return problem.scalar == Scalar::float64 ? typed(double{}) : typed(float{});
}

bool forward(const Problem& problem, const Classes& classes, const BFloatProducts* products,
             Arena& arena, const ForwardResult& result) {
  return with_logits(problem, [&](auto zero, const auto& logits) {
    return forward_with<decltype(zero)>(problem, classes, products, logits, arena, result);
  });
}

bool backward(const Problem& problem, const Classes& classes, const BFloatProducts* products,
              Arena& arena, const BackwardInput& input, const Gradients& gradients) {
  return with_logits(problem, [&](auto zero, const auto& logits) {
    using Pass = BackwardPass<decltype(zero), std::decay_t<decltype(logits)>>;
    return Pass(problem, classes, products, logits, arena, input, gradients).run();
  });
}

bool scale_gradients(const Problem& problem, const Classes& classes, const BFloatProducts* products,
                     Arena& arena, const BackwardInput& input, void* gradients) {
  return with_logits(problem, [&](auto zero, const auto& logits) {
    using T = decltype(zero);
    using Pass = ScalePass<T, std::decay_t<decltype(logits)>>;
    return Pass(problem, classes, products, logits, arena, input).run(static_cast<T*>(gradients));
  });
}

void save(const Problem& problem, const Classes& classes, const KnownSums& sums) {
  with_logits(problem, [&](auto zero, const auto& logits) {
    save_known<decltype(zero)>(problem, classes, nats_per_logit(logits, problem.formula), sums);
    return true;
  });
}

}  // namespace

namespace CIRCLE_LEVEL {
extern const Kernels kernels;
const Kernels kernels{forward, backward, scale_gradients, save, exact_similarities, count_above};
}  // namespace CIRCLE_LEVEL

}  // namespace circle_kernels
