// The instruction set that a test program is run for.
#pragma once

#include "common/dispatch.h"

namespace circle_kernels {

// The level that the program's argument names; null, with a message, where this machine does not
// support it. Ends the program if there is no such level: a test must not be skipped for that.
const Level* level_from_arguments(int count, char** arguments);

}  // namespace circle_kernels
