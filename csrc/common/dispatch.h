// The kernels of each instruction set, and which of them this machine runs.
#pragma once

#include <exception>
#include <string>
#include <vector>

#include "common/bfloat_products.h"
#include "common/counting.h"
#include "common/memory.h"
#include "common/order/classes.h"
#include "common/problem.h"

namespace circle_kernels {

// The passes for one instruction set. Arguments are checked before. Where problem.bfloat_terms is
// not 0, similarities and gradients of float type are made of the given products. False where the
// pass was interrupted and its results are worth nothing.
struct Kernels {
  bool (*forward)(const Problem&, const Classes&, const BFloatProducts*, Arena&,
                  const ForwardResult&);
  bool (*backward)(const Problem&, const Classes&, const BFloatProducts*, Arena&,
                   const BackwardInput&, const Gradients&);
  bool (*scale_gradients)(const Problem&, const Classes&, const BFloatProducts*, Arena&,
                          const BackwardInput&, void* gradients);
  void (*save)(const Problem&, const Classes&, const KnownSums&);
  bool (*exact_similarities)(const ExactSides&, const ExactPairs&);
  bool (*count_above)(const ExactSides&, const ThresholdCounts&, Arena&);
};

// An instruction set by name. Later levels are faster where they are supported.
struct Level {
  const char* name;
  const Kernels* kernels;
  const BFloatProducts* products;  // null where the instruction set has none
  bool supported;                  // by this machine and its operating system
};

// All levels that were compiled, the baseline first.
const std::vector<Level>& levels();

// The level that the environment variable CIRCLE_KERNELS_CPU_LEVEL names, or without it the best
// one that is supported. Throws std::invalid_argument for a name that is unknown or not supported
// here.
const Level& current_level();

// Problem::interrupted returned true.
struct Interrupted : std::exception {
  const char* what() const noexcept override { return "the pass was interrupted"; }
};

// All passes throw Interrupted, and std::bad_alloc where the problem does not fit into memory.
//
// run_forward: std::invalid_argument where result.saved has not the size of SavedLayout.
void run_forward(const Level& level, const Problem& problem, const ForwardResult& result);
// What a forward pass at this level leaves that keeps no tiles and finds these log-sum-exps. Throws
// as run_forward does.
void run_save(const Level& level, Problem problem, const KnownSums& sums);
// With the level of the forward pass. Throws std::runtime_error where input.saved is not what a
// forward pass of this problem left.
void run_backward(const Problem& problem, const BackwardInput& input, const Gradients& gradients);
// With respect to the logarithms of both scales, T (2,), of positives and of negatives: over all
// that count pairs upstream sum_j softmax_j z_j. Throws as run_backward does.
void run_scale_gradients(const Problem& problem, const BackwardInput& input, void* gradients);
// The same numbers at every level and with any number of threads.
void run_exact_similarities(const Level& level, ExactSides sides, const ExactPairs& pairs);
void run_count_above(const Level& level, ExactSides sides, const ThresholdCounts& counts);

}  // namespace circle_kernels
