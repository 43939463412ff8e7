// The threads of a pass.
#pragma once

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace circle_kernels {
namespace {

int thread_index() {
#if defined(_OPENMP)
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// Whether the caller wants a pass to end before it is done.
class Interruption {
 public:
  explicit Interruption(bool (*interrupted)()) : interrupted_(interrupted) {}

  // Called by every thread before each piece of work, which is left out then. The calling thread
  // asks.
  bool asked() {
    if (interrupted_ == nullptr) return false;
    if (thread_index() == 0 && !wanted() && interrupted_()) {
      __atomic_store_n(&wanted_, true, __ATOMIC_RELAXED);
    }
    return wanted();
  }
  bool wanted() const { return __atomic_load_n(&wanted_, __ATOMIC_RELAXED); }

 private:
  bool (*interrupted_)();
  bool wanted_ = false;
};

}  // namespace
}  // namespace circle_kernels
