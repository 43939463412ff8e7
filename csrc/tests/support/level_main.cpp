// main() of a test that is itself compiled for one instruction set: this file is not, so it can say
// that the machine does not have it.
#include "tests/support/level_argument.h"

namespace circle_kernels {
int run_tests();  // the test's, compiled for the level
}

int main(int count, char** arguments) {
  if (circle_kernels::level_from_arguments(count, arguments) == nullptr) return 77;
  return circle_kernels::run_tests();
}
