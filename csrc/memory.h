// Scratch memory of one call.
#pragma once

#include <cstddef>
#include <vector>

namespace circle_kernels {

// Hands out cache-line-aligned, uninitialised blocks and frees them together.
//
// A thread keeps up to SPARE_BYTES of what an arena had for the next one: for a small batch, asking
// the system for pages again takes longer than computing.
class Arena {
 public:
  static constexpr std::size_t SPARE_BYTES = std::size_t{16} << 20;

  Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena();

  // Throws std::bad_alloc.
  void* allocate(std::size_t bytes);

 private:
  void* new_block(std::size_t bytes);

  std::vector<void*> blocks_;
  char* spare_;             // taken from the thread; null if it has none
  std::size_t spare_size_;  // bytes
  std::size_t spare_used_ = 0;
  std::size_t total_ = 0;  // bytes handed out
};

// Asks the system for huge pages in a large block that will be written soon: a page fault for every
// 4 KB costs more than computing what goes there. A hint; nothing happens where it is not
// supported.
void prefer_huge_pages(void* begin, std::size_t bytes);

}  // namespace circle_kernels
