// Passes without the GIL that Ctrl-C ends.
#pragma once

#include <pybind11/pybind11.h>

#include <functional>

#include "common/dispatch.h"

namespace circle_kernels {

// To be called once with the GIL: Python's main thread alone runs signal handlers.
void find_main_thread();

// Problem::interrupted on this thread; to be called with the GIL or without.
bool (*asks_python())();

// From now on that function is called now and then, with the GIL, while a pass asks Python. What it
// raises ends the pass.
class Reporting {
 public:
  explicit Reporting(std::function<void()> report);
  ~Reporting();
  Reporting(const Reporting&) = delete;
  Reporting& operator=(const Reporting&) = delete;
};

void start_asking();

// Runs a pass without the GIL.
template <class Pass>
void run_interruptible(Pass pass) {
  start_asking();
  try {
    pybind11::gil_scoped_release release;
    pass();
  } catch (const Interrupted&) {
    throw pybind11::error_already_set();
  }
}

}  // namespace circle_kernels
