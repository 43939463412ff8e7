// dispatch.h: which instruction set the environment variable gives.
#include <cstdlib>
#include <stdexcept>

#include "common/dispatch.h"
#include "tests/support/check.h"

namespace circle_kernels {
namespace {

const Level& level_for(const char* name) {
  setenv("CIRCLE_KERNELS_CPU_LEVEL", name, 1);
  return current_level();
}

bool is_refused(const char* name) {
  try {
    level_for(name);
  } catch (const std::invalid_argument& reason) {
    // The message says what would have worked.
    CHECK(std::string(reason.what()).find("baseline") != std::string::npos);
    return true;
  }
  return false;
}

void test_names() {
  const Level* best = nullptr;
  for (const Level& level : levels()) {
    if (level.supported) {
      CHECK(&level_for(level.name) == &level);
      best = &level;
    } else {
      CHECK(is_refused(level.name));
    }
  }
  CHECK(&level_for("") == best);
  unsetenv("CIRCLE_KERNELS_CPU_LEVEL");
  CHECK(&current_level() == best);
  CHECK(std::string(levels().front().name) == "baseline" && levels().front().supported);
  CHECK(is_refused("avx"));
  CHECK(is_refused("BASELINE"));
}

}  // namespace
}  // namespace circle_kernels

int main() {
  using namespace circle_kernels;
  test_names();
  return summary();
}
