#include "tests/support/buffer.h"

#include <cmath>

#include "kernels/vectors/scalars.h"

namespace circle_kernels {

namespace {

// Calls `use` with a value of the type.
template <class Use>
auto with_type(Scalar scalar, Use use) {
  switch (scalar) {
    case Scalar::float16:
      return use(Half{});
    case Scalar::bfloat16:
      return use(BFloat{});
    case Scalar::float32:
      return use(float{});
    default:
      return use(double{});
  }
}

std::size_t size_of(Scalar scalar) {
  return with_type(scalar, [](auto type) { return sizeof type; });
}

}  // namespace

Scalar result_scalar(Scalar scalar) {
  return scalar == Scalar::float64 ? Scalar::float64 : Scalar::float32;
}

double rounding_unit(Scalar scalar) {
  switch (scalar) {
    case Scalar::float16:
      return 0x1p-11;
    case Scalar::bfloat16:
      return 0x1p-8;
    case Scalar::float32:
      return 0x1p-24;
    default:
      return 0x1p-53;
  }
}

Buffer::Buffer(Scalar scalar, int64_t count)
    : scalar_(scalar), count_(count), bytes_(static_cast<std::size_t>(count) * size_of(scalar)) {
  for (int64_t index = 0; index < count; ++index) set(index, std::nan(""));
}

double Buffer::at(int64_t index) const {
  return with_type(scalar_, [&](auto value) -> double {
    std::memcpy(&value, bytes_.data() + index * sizeof value, sizeof value);
    return widen(value);
  });
}

void Buffer::set(int64_t index, double value) {
  with_type(scalar_, [&](auto narrowed) {
    narrow(static_cast<decltype(widen(narrowed))>(value), narrowed);
    std::memcpy(bytes_.data() + index * sizeof narrowed, &narrowed, sizeof narrowed);
  });
}

}  // namespace circle_kernels
