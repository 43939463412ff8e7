#include "bindings/interruptible.h"

#include <chrono>
#include <utility>

namespace circle_kernels {
namespace {

// Python runs its signal handlers, Ctrl-C's among them, between its own instructions: a long pass
// has to ask for it. As rarely as nobody notices, since the GIL may be somebody else's at the time.
constexpr std::chrono::milliseconds BETWEEN_CALLS{50};
thread_local std::chrono::steady_clock::time_point next_call;
thread_local std::function<void()> report_progress;

unsigned long main_thread = 0;

// Problem::interrupted; with the Python exception set that a handler, or a report, has raised.
bool python_has_raised() {
  const auto now = std::chrono::steady_clock::now();
  if (now < next_call) return false;
  next_call = now + BETWEEN_CALLS;
  pybind11::gil_scoped_acquire acquire;
  if (PyErr_CheckSignals() != 0) return true;
  if (!report_progress) return false;
  try {
    report_progress();
  } catch (pybind11::error_already_set& error) {
    error.restore();
    return true;
  }
  return false;
}

}  // namespace

void find_main_thread() {
  const auto threading = pybind11::module_::import("threading");
  main_thread = threading.attr("main_thread")().attr("ident").cast<unsigned long>();
}

bool (*asks_python())() {
  const bool is_main = PyThread_get_thread_ident() == main_thread;
  return is_main || report_progress ? python_has_raised : nullptr;
}

Reporting::Reporting(std::function<void()> report) { report_progress = std::move(report); }

Reporting::~Reporting() { report_progress = nullptr; }

void start_asking() { next_call = std::chrono::steady_clock::now() + BETWEEN_CALLS; }

}  // namespace circle_kernels
