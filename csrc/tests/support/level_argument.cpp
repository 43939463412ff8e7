#include "tests/support/level_argument.h"

#include <cstdio>
#include <cstdlib>
#include <string>

namespace circle_kernels {

namespace {

const Level& level_named(const std::string& name) {
  for (const Level& level : levels()) {
    if (name == level.name) return level;
  }
  std::printf("there is no level '%s'\n", name.c_str());
  std::exit(1);
}

}  // namespace

std::vector<const Level*> levels_from_arguments(int count, char** arguments) {
  std::vector<const Level*> named;
  for (int index = 1; index < count; ++index) {
    const Level& level = level_named(arguments[index]);
    if (level.supported) {
      named.push_back(&level);
    } else {
      std::printf("skipped: this machine does not support %s\n", level.name);
    }
  }
  return named;
}

const Level* level_from_arguments(int count, char** arguments) {
  if (count != 2) {
    std::printf("one level, please\n");
    std::exit(1);
  }
  const std::vector<const Level*> named = levels_from_arguments(count, arguments);
  return named.empty() ? nullptr : named.front();
}

}  // namespace circle_kernels
