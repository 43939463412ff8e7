// Running the kernels, and comparing what they give.
#pragma once

#include <string>

#include "tests/support/level_argument.h"
#include "tests/support/reference.h"

namespace circle_kernels {

struct RunOptions {
  int64_t kept_tiles = 0;
  int threads = 1;
  bool grad_rows = true, grad_columns = true;
};

struct Results {
  Buffer lse_pos, lse_neg;
  Buffer saved;
  Buffer grad_rows, grad_columns;
};

Results run_forward_only(const Level& level, const Inputs& inputs, const RunOptions& options);
// The backward pass over what a forward pass has left in `results`.
void run_backward_of(const Problem& problem, const Inputs& inputs, const RunOptions& options,
                     Results& results);
// The gradients of both scales, from the same.
Buffer scale_gradients_of(const Problem& problem, const Inputs& inputs, const Results& results);
Results run_both(const Level& level, const Inputs& inputs, const RunOptions& options);

// The first difference in words, or nothing. `worst` becomes the largest share of what is allowed,
// if it was smaller and the type is not a narrow one.
std::string difference(const Inputs& inputs, const Reference& expected, const Results& results,
                       bool with_gradients, double& worst);

// The same of gradients of both scales.
std::string scale_difference(const Inputs& inputs, const Reference& expected,
                             const Buffer& gradients, double& worst);

}  // namespace circle_kernels
