// The order in which embeddings are visited: class by class, so that positives stand together and
// nearly all tiles hold none.
#pragma once

#include <cstdint>
#include <vector>

#include "common/problem.h"

namespace circle_kernels {

// Embeddings class by class, padded to whole panels.
struct Ordering {
  // Sorted position -> position as given; not padded. Empty where they are the same.
  std::vector<int64_t> order;
  std::vector<int32_t> class_ids;  // ascending; NO_CLASS for padding
};

constexpr int32_t NO_CLASS = -1;

struct Classes {
  Ordering rows;
  Ordering columns;  // empty in self mode
};

// Equal labels get equal class ids on both sides. Classes are in the order of their first member,
// and members in the order given, so the result does not depend on what classes are called.
//
// Where the columns' labels are consecutive numbers, as those of class weights are, the columns
// stay as they are, and rows are in the order of their labels; rows without a column come last, as
// one class.
Classes order_by_class(const Problem& problem);

}  // namespace circle_kernels
