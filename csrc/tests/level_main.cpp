// main() of a test that is itself compiled for one instruction set: this file is not, so it can say
// that the machine does not have it.
#include <cstdio>
#include <cstdlib>
#include <exception>

#include "../kernels.h"

namespace circle_kernels {
int run_tests();  // the test's, compiled for the level
}

int main() {
  try {
    setenv("CIRCLE_KERNELS_CPU_LEVEL", CIRCLE_TEST_LEVEL, 1);
    circle_kernels::current_level();
  } catch (const std::exception& reason) {
    std::printf("skipped: %s\n", reason.what());
    return 77;
  }
  return circle_kernels::run_tests();
}
