// Closed formulas as programs, so that their reference serves for these, too.
#pragma once

#include <memory>

#include "common/programs/program_memory.h"

namespace circle_kernels {

// A formula of functions that are those of a closed one.
std::shared_ptr<const OwnedFormula> by_functions(const Formula& formula);

}  // namespace circle_kernels
