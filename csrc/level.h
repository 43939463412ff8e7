// Both passes for one instruction set: what a translation unit in kernels/ compiles.
//
// The unit defines CIRCLE_LEVEL (its namespace) and CIRCLE_VECTOR_BYTES. Code shared by all units
// (ordering, memory) is compiled once, without their flags, and called through plain functions.
#pragma once

#include <type_traits>

#include "backward_pass.h"
#include "forward_pass.h"
#include "kernels.h"

namespace circle_kernels {
namespace {

// Calls `run` with the type computed in and the formula's logits.
template <class Run>
void with_logits(const Problem& problem, Run run) {
  const auto typed = [&](auto zero) {
    using T = decltype(zero);
    if (problem.formula.kind == FormulaKind::unified) {
      run(zero, UnifiedLogits<T>(problem.formula));
    } else if (problem.formula.detach_weights) {
      run(zero, CircleLogits<T, true>(problem.formula));
    } else {
      run(zero, CircleLogits<T, false>(problem.formula));
    }
  };
  if (problem.scalar == Scalar::float64) {
    typed(double{});
  } else {
    typed(float{});
  }
}

void forward(const Problem& problem, const Classes& classes, const BFloatProducts* products,
             Arena& arena, const ForwardResult& result) {
  with_logits(problem, [&](auto zero, const auto& logits) {
    forward_with<decltype(zero)>(problem, classes, products, logits, arena, result);
  });
}

void backward(const Problem& problem, const Classes& classes, const BFloatProducts* products,
              Arena& arena, const BackwardInput& input, const Gradients& gradients) {
  with_logits(problem, [&](auto zero, const auto& logits) {
    using Pass = BackwardPass<decltype(zero), std::decay_t<decltype(logits)>>;
    Pass(problem, classes, products, logits, arena, input, gradients).run();
  });
}

}  // namespace

namespace CIRCLE_LEVEL {
extern const Kernels kernels;
const Kernels kernels{forward, backward};
}  // namespace CIRCLE_LEVEL

}  // namespace circle_kernels
