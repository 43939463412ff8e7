// The instruction sets that a test program is run for.
#pragma once

#include <vector>

#include "common/dispatch.h"

namespace circle_kernels {

// The levels that the program's arguments name and this machine supports; a message says which ones
// it does not. Ends the program if there is no such level: a test must not be skipped for that.
std::vector<const Level*> levels_from_arguments(int count, char** arguments);

// The only one; null where it is not supported.
const Level* level_from_arguments(int count, char** arguments);

}  // namespace circle_kernels
