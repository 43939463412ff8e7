// The head of what the forward pass leaves: what it belongs to. The backward pass trusts nothing
// else for what it reads there; between the passes, memory is in the hands of others.
#pragma once

#include "common/problem.h"

namespace circle_kernels {

// Throws std::invalid_argument where the forward pass cannot leave problem.kept_tiles in memory of
// so many bytes.
void check_saved_memory(const Problem& problem, int64_t bytes);

// `level` is the index in levels() of the instruction set that ran.
void write_saved_header(const Problem& problem, int level, void* saved);

struct SavedBy {
  int level;
  int64_t kept_tiles;
};

// Which level wrote it, and how many tiles are kept there. Throws std::runtime_error where it is
// not what a forward pass of this problem left. Problem::kept_tiles is not looked at.
SavedBy read_saved_header(const Problem& problem, const void* saved, int64_t bytes);

}  // namespace circle_kernels
