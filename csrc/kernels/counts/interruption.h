// Whether a pass shall end early: the thread that began it asks, the others hear of it.
#pragma once

#include "kernels/tiles/operands.h"

namespace circle_kernels {
namespace {

class Interruption {
 public:
  explicit Interruption(bool (*interrupted)()) : interrupted_(interrupted) {}

  bool asked() {
    if (interrupted_ != nullptr && thread_index() == 0 && !wanted() && interrupted_()) {
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
