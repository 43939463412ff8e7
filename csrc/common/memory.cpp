#include "common/memory.h"

#include <atomic>
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
// Larger requests are refused before anything is added to them.
constexpr std::size_t MOST_BYTES = PTRDIFF_MAX - 2 * HUGE_PAGE;

// What a thread keeps between calls. An arena takes it, so that two arenas never share it.
struct Spare {
  char* block = nullptr;
  std::size_t size = 0;
  ~Spare() { std::free(block); }
};
thread_local Spare spare;

// Asks the system for huge pages in a large block: a page fault for every 4 KB costs more than
// computing what goes there. A hint; nothing happens where it is not supported.
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

void* new_pages(std::size_t bytes) {
  void* begin = nullptr;
  if (posix_memalign(&begin, bytes >= HUGE_PAGE ? HUGE_PAGE : CACHE_LINE, bytes) != 0) {
    throw std::bad_alloc();
  }
  prefer_huge_pages(begin, bytes);
  return begin;
}

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

void* Arena::allocate(int64_t count, std::size_t element_bytes) {
  std::size_t bytes;
  if (__builtin_mul_overflow(count, element_bytes, &bytes) || bytes > MOST_BYTES) {
    throw std::bad_alloc();
  }
  const std::size_t rounded = (bytes + CACHE_LINE) / CACHE_LINE * CACHE_LINE;  // at least one
  total_ += rounded;
  if (spare_ == nullptr || rounded > spare_size_ - spare_used_) return new_block(rounded);
  void* block = spare_ + spare_used_;
  spare_used_ += rounded;
  return block;
}

void* Arena::new_block(std::size_t bytes) {
  blocks_.reserve(blocks_.size() + 1);  // first, so that a failure below leaks nothing
  blocks_.push_back(new_pages(bytes));
  return blocks_.back();
}

// The size of a block's memory stands before it, so that one pointer describes a spare one and no
// lock is needed, which a fork() could leave locked.
struct Block::Header {
  alignas(CACHE_LINE) std::size_t capacity;

  static Header* of(void* memory) { return static_cast<Header*>(memory) - 1; }
};

namespace {
std::atomic<void*> spare_block{nullptr};
}

Block::Block(std::size_t bytes) : memory_(spare_block.exchange(nullptr)), size_(bytes) {
  if (memory_ != nullptr) {
    if (Header::of(memory_)->capacity >= bytes) return;
    std::free(Header::of(memory_));
  }
  if (bytes > MOST_BYTES) throw std::bad_alloc();
  // Whole huge pages, so that problems of nearly the same size take turns with one block.
  std::size_t total = sizeof(Header) + bytes;
  if (KEEPS_SPARES && total > HUGE_PAGE) total = (total + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
  auto* header = static_cast<Header*>(new_pages(total));
  header->capacity = total - sizeof(Header);
  memory_ = header + 1;
}

Block::~Block() {
  void* unwanted = memory_;
  if (Header::of(memory_)->capacity <= SPARE_BYTES) unwanted = spare_block.exchange(memory_);
  if (unwanted != nullptr) std::free(Header::of(unwanted));
}

}  // namespace circle_kernels
