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
}  // namespace

Arena::~Arena() {
  for (void* block : blocks_) std::free(block);
}

void* Arena::allocate(std::size_t bytes) {
  const std::size_t alignment = bytes >= HUGE_PAGE ? HUGE_PAGE : CACHE_LINE;
  const std::size_t rounded = (bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
  blocks_.push_back(nullptr);  // first, so that a failure here leaks nothing
  void* block = nullptr;
  if (posix_memalign(&block, alignment, rounded > 0 ? rounded : CACHE_LINE) != 0) {
    blocks_.pop_back();
    throw std::bad_alloc();
  }
  blocks_.back() = block;
  prefer_huge_pages(block, rounded);
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
