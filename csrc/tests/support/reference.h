// Both passes in double precision, as the formulas are written: no tiles, no shifts, no order.
#pragma once

#include <vector>

#include "tests/support/cases.h"

namespace circle_kernels {

// Embeddings' gradient, and what its rounding errors are relative to, however much of it cancels.
struct ReferenceGradient {
  std::vector<double> values;  // (count, dim)
  std::vector<double> scales;  // (count,) of the sum that an embedding's entries are made of
  std::vector<double> ranges;  // (count,) the same if every pair had all of its row's weight
};

struct Reference {
  std::vector<double> lse_pos, lse_neg;  // natural logarithms, of rows and then of columns
  ReferenceGradient rows, columns;       // in self mode the columns are empty
  // Of positives and of negatives, with respect to the logarithms of their scales; and the sizes of
  // what these are sums of.
  double scale_gradients[2], scale_sizes[2];
  // How far logits may be off in arithmetic with a rounding unit of 1.
  double logit_error;
};

Reference reference(const Inputs& inputs);

}  // namespace circle_kernels
