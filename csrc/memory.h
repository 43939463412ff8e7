// Scratch memory of one call.
#pragma once

#include <cstddef>
#include <vector>

namespace circle_kernels {

// Hands out cache-line-aligned, uninitialised blocks and frees them together.
class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena();

  // Throws std::bad_alloc.
  void* allocate(std::size_t bytes);

 private:
  std::vector<void*> blocks_;
};

// Asks the system for huge pages in a large block that will be written soon: a page fault for every
// 4 KB costs more than computing what goes there. A hint; nothing happens where it is not
// supported.
void prefer_huge_pages(void* begin, std::size_t bytes);

}  // namespace circle_kernels
