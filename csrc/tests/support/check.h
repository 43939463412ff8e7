// Checks for the tests: a failure is printed and counted, and the program goes on.
#pragma once

#include <cstdarg>
#include <cstdio>

namespace circle_kernels {
namespace {

constexpr int MOST_PRINTED = 20;

int failures = 0;

__attribute__((format(printf, 4, 5))) bool check(bool holds, const char* place,
                                                 const char* expression, const char* format, ...) {
  if (holds) return true;
  if (++failures > MOST_PRINTED) return false;
  std::printf("%s: %s", place, expression);
  std::va_list values;
  va_start(values, format);
  std::vprintf(format, values);
  va_end(values);
  std::printf("\n");
  if (failures == MOST_PRINTED) std::printf("further failures are only counted\n");
  return false;
}

// A test program's exit status.
int summary() {
  if (failures > 0) std::printf("%d checks failed\n", failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace circle_kernels

#define CIRCLE_TEXT_OF(token) #token
#define CIRCLE_TEXT(token) CIRCLE_TEXT_OF(token)
#define CIRCLE_PLACE __FILE__ ":" CIRCLE_TEXT(__LINE__)

#define CHECK(condition) \
  ::circle_kernels::check(static_cast<bool>(condition), CIRCLE_PLACE, #condition, "%s", "")
// With the values that matter, as printf prints them.
#define CHECK_WITH(condition, ...) \
  ::circle_kernels::check(static_cast<bool>(condition), CIRCLE_PLACE, #condition, ": " __VA_ARGS__)
