// The scalar types that embeddings come in, and the way to and from the type computed in.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

namespace circle_kernels {
namespace {

struct Half {
  uint16_t bits;
};
struct BFloat {
  uint16_t bits;
};

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float widen(float value) { return value; }
inline double widen(double value) { return value; }
inline float widen(BFloat value) { return float_of(uint32_t{value.bits} << 16); }

inline float widen(Half value) {
  // Exponent and mantissa in a float's place, then the bias by a product, which also gives
  // subnormal numbers their value; infinities and NaN get a float's largest exponent.
  const uint32_t magnitude = uint32_t{value.bits & 0x7fffu} << 13;
  const float scaled = float_of(magnitude) * 0x1p112f;
  const uint32_t finite = bits_of(scaled);
  const uint32_t bits = (value.bits & 0x7c00u) == 0x7c00u ? magnitude | 0x7f800000u : finite;
  return float_of(bits | uint32_t{value.bits & 0x8000u} << 16);
}

inline void narrow(float value, float& result) { result = value; }
inline void narrow(double value, double& result) { result = value; }

// To the nearest, ties to even.
inline void narrow(float value, BFloat& result) {
  const uint32_t bits = bits_of(value);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  result.bits = static_cast<uint16_t>(nan ? 0x7fc0u : rounded >> 16);
}

inline void narrow(float value, Half& result) {
  const uint32_t sign = bits_of(value) & 0x80000000u;
  const uint32_t magnitude = bits_of(value) ^ sign;
  uint32_t bits;
  if (magnitude > 0x7f800000u) {
    bits = 0x7e00u;  // NaN
  } else if (magnitude >= 0x477ff000u) {
    bits = 0x7c00u;  // 65520 and above round to infinity
  } else if (magnitude < 0x38800000u) {
    // Below 2^-14: adding 1/2 leaves the value in units of 2^-24, rounded, in the lowest bits.
    bits = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
  } else {
    bits = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  result.bits = static_cast<uint16_t>(bits | sign >> 16);
}

// The largest finite value of a scalar type, in the type computed in.
template <class S>
struct Largest;
template <>
struct Largest<float> {
  static constexpr float value = std::numeric_limits<float>::max();
};
template <>
struct Largest<double> {
  static constexpr double value = std::numeric_limits<double>::max();
};
template <>
struct Largest<Half> {
  static constexpr float value = 65504.0f;
};
template <>
struct Largest<BFloat> {
  static constexpr float value = 0x1.fep127f;
};

}  // namespace
}  // namespace circle_kernels
