// The kernels of each instruction set, and which of them this machine runs.
#pragma once

#include <string>
#include <vector>

#include "bfloat_products.h"
#include "classes.h"
#include "memory.h"
#include "problem.h"

namespace circle_kernels {

// Both passes for one instruction set. Arguments are checked before. Where problem.bfloat_terms is
// not 0, similarities and gradients of float type are made of the given products.
struct Kernels {
  void (*forward)(const Problem&, const Classes&, const BFloatProducts*, Arena&,
                  const ForwardResult&);
  void (*backward)(const Problem&, const Classes&, const BFloatProducts*, Arena&,
                   const BackwardInput&, const Gradients&);
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

void run_forward(const Level& level, const Problem& problem, const ForwardResult& result);
void run_backward(const Level& level, const Problem& problem, const BackwardInput& input,
                  const Gradients& gradients);

}  // namespace circle_kernels
