// Memory as the kernels' callers own it.
#pragma once

#include <cstdint>
#include <new>
#include <vector>

#include "common/problem.h"

namespace circle_kernels {

// The type that results of this scalar type's problems have, and that they are computed in.
Scalar result_scalar(Scalar scalar);

// Half the distance from 1 to the next number.
double rounding_unit(Scalar scalar);

// Aligned as what the forward pass leaves for the backward pass has to be.
template <class T>
struct CacheLineAllocator {
  using value_type = T;
  static constexpr std::align_val_t ALIGNMENT{64};

  CacheLineAllocator() = default;
  template <class Other>
  CacheLineAllocator(const CacheLineAllocator<Other>&) {}

  T* allocate(std::size_t count) {
    return static_cast<T*>(::operator new(count * sizeof(T), ALIGNMENT));
  }
  void deallocate(T* begin, std::size_t) { ::operator delete(begin, ALIGNMENT); }
  bool operator==(const CacheLineAllocator&) const { return true; }
  bool operator!=(const CacheLineAllocator&) const { return false; }
};

// Numbers of a scalar type in memory of exactly their size, so that AddressSanitizer sees every
// access beside it. They start as NaN: a result that is never written is never right.
class Buffer {
 public:
  Buffer(Scalar scalar, int64_t count);

  double at(int64_t index) const;
  // Rounds.
  void set(int64_t index, double value);
  void* data() { return bytes_.data(); }
  const void* data() const { return bytes_.data(); }
  int64_t count() const { return count_; }
  int64_t bytes() const { return static_cast<int64_t>(bytes_.size()); }
  bool same_bytes(const Buffer& other) const { return bytes_ == other.bytes_; }

 private:
  Scalar scalar_;
  int64_t count_;
  std::vector<unsigned char, CacheLineAllocator<unsigned char>> bytes_;
};

}  // namespace circle_kernels
