#include "tests/support/level_argument.h"

#include <cstdio>
#include <cstdlib>
#include <string>

namespace circle_kernels {

const Level* level_from_arguments(int count, char** arguments) {
  const std::string name = count > 1 ? arguments[1] : "";
  for (const Level& level : levels()) {
    if (name != level.name) continue;
    if (level.supported) return &level;
    std::printf("skipped: this machine does not support %s\n", level.name);
    return nullptr;
  }
  std::printf("there is no level '%s'\n", name.c_str());
  std::exit(1);
}

}  // namespace circle_kernels
