#include "memory.h"

#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace circle_kernels {

namespace {

constexpr std::size_t CACHE_LINE = 64;
constexpr std::size_t HUGE_PAGE = std::size_t{1} << 21;

// What a thread keeps between calls. An arena takes it, so that two arenas never share it.
struct Spare {
  char* block = nullptr;
  std::size_t size = 0;
  ~Spare() { std::free(block); }
};
thread_local Spare spare;

}  // namespace

Arena::Arena() : spare_(spare.block), spare_size_(spare.size) { spare.block = nullptr; }

Arena::~Arena() {
  for (void* block : blocks_) std::free(block);
  // A block of the size that this call needed serves the next one like it.
  if (total_ > spare_size_ && total_ <= SPARE_BYTES) {
    std::free(spare_);
    spare_ = static_cast<char*>(std::aligned_alloc(CACHE_LINE, total_));
    spare_size_ = spare_ != nullptr ? total_ : 0;
  }
  std::free(spare.block);
  spare.block = spare_;
  spare.size = spare_size_;
}

void* Arena::allocate(std::size_t bytes) {
  const std::size_t rounded = (bytes + CACHE_LINE) / CACHE_LINE * CACHE_LINE;  // at least one
  total_ += rounded;
  if (spare_ == nullptr || rounded > spare_size_ - spare_used_) return new_block(rounded);
  void* block = spare_ + spare_used_;
  spare_used_ += rounded;
  return block;
}

void* Arena::new_block(std::size_t bytes) {
  blocks_.push_back(nullptr);  // first, so that a failure below leaks nothing
  void* block = nullptr;
  if (posix_memalign(&block, bytes >= HUGE_PAGE ? HUGE_PAGE : CACHE_LINE, bytes) != 0) {
    blocks_.pop_back();
    throw std::bad_alloc();
  }
  blocks_.back() = block;
  prefer_huge_pages(block, bytes);
  return block;
}

void prefer_huge_pages(void* begin, std::size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const auto first = (reinterpret_cast<std::uintptr_t>(begin) + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1);
  const auto last = (reinterpret_cast<std::uintptr_t>(begin) + bytes) & ~(HUGE_PAGE - 1);
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)begin;
  (void)bytes;
#endif
}

}  // namespace circle_kernels
