// Scratch memory of one call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace circle_kernels {

// Under a sanitizer nothing is kept between calls, so that it sees the end of every block.
#if defined(CIRCLE_SANITIZED)
constexpr bool KEEPS_SPARES = false;
#else
constexpr bool KEEPS_SPARES = true;
#endif

// Hands out cache-line-aligned, uninitialised blocks and frees them together.
//
// A thread keeps up to SPARE_BYTES of what an arena had for the next one: for a small batch, asking
// the system for pages again takes longer than computing.
class Arena {
 public:
  static constexpr std::size_t SPARE_BYTES = KEEPS_SPARES ? std::size_t{48} << 20 : 0;

  Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena();

  // Memory for so many elements. Throws std::bad_alloc, also where their bytes are too many to
  // count.
  void* allocate(int64_t count, std::size_t element_bytes);

 private:
  void* new_block(std::size_t bytes);

  std::vector<void*> blocks_;
  char* spare_;             // taken from the thread; null if it has none
  std::size_t spare_size_;  // bytes
  std::size_t spare_used_ = 0;
  std::size_t total_ = 0;  // bytes handed out
};

// Memory that outlives a call: what the forward pass leaves for the backward pass.
//
// The last block given back, up to SPARE_BYTES, is kept for the next one: at a few thousand rows
// the system spends a fifth of the forward pass's time on clearing pages, which nobody needs
// cleared.
class Block {
 public:
  static constexpr std::size_t SPARE_BYTES = KEEPS_SPARES ? std::size_t{80} << 20 : 0;

  // Throws std::bad_alloc.
  explicit Block(std::size_t bytes);
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  ~Block();

  void* data() const { return memory_; }
  std::size_t size() const { return size_; }  // bytes asked for

 private:
  struct Header;

  void* memory_;
  std::size_t size_;
};

}  // namespace circle_kernels
