// scalars.h: every half and bfloat number there is, against their definition.
#include <cmath>
#include <initializer_list>

#include "kernels/vectors/scalars.h"
#include "tests/support/check.h"

namespace circle_kernels {
namespace {

struct Format {
  const char* name;
  int exponent_bits, mantissa_bits;

  uint32_t infinity() const { return ((1u << exponent_bits) - 1) << mantissa_bits; }

  // What 16 bits mean, by IEEE 754's definition.
  double value(uint32_t bits) const {
    const int bias = (1 << (exponent_bits - 1)) - 1;
    const uint32_t magnitude = bits & 0x7fffu;
    const int exponent = static_cast<int>(magnitude >> mantissa_bits);
    const auto mantissa = static_cast<double>(magnitude & ((1u << mantissa_bits) - 1));
    double result;
    if (magnitude >= infinity()) {
      result = magnitude == infinity() ? HUGE_VAL : std::nan("");
    } else if (exponent == 0) {
      result = std::ldexp(mantissa, 1 - bias - mantissa_bits);
    } else {
      result = std::ldexp(std::ldexp(1, mantissa_bits) + mantissa, exponent - bias - mantissa_bits);
    }
    return (bits & 0x8000u) != 0 ? -result : result;
  }
};

template <class S>
uint32_t narrow_bits(float value) {
  S result{0};
  narrow(value, result);
  return result.bits;
}

template <class S>
void test_every_number(const Format& format) {
  for (uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const float wide = widen(S{static_cast<uint16_t>(bits)});
    const double expected = format.value(bits);
    if (expected != expected) {
      CHECK_WITH(wide != wide, "%s %04x", format.name, bits);
      const uint32_t again = narrow_bits<S>(wide);
      CHECK_WITH((again & 0x7fffu) > format.infinity(), "%s %04x -> %04x", format.name, bits,
                 again);
      continue;
    }
    CHECK_WITH(wide == expected && std::signbit(wide) == ((bits & 0x8000u) != 0), "%s %04x",
               format.name, bits);
    CHECK_WITH(narrow_bits<S>(wide) == bits, "%s %04x", format.name, bits);
  }
}

// Between each number and the next larger one, infinity being the next after the largest.
template <class S>
void test_rounding(const Format& format) {
  for (uint32_t lower = 0; lower < format.infinity(); ++lower) {
    const uint32_t upper = lower + 1;
    const double below = format.value(lower);
    // Infinity stands where the next number would.
    const double step =
        upper < format.infinity() ? format.value(upper) - below : below - format.value(lower - 1);
    const auto middle = static_cast<float>(below + step / 2);
    const uint32_t even = (lower & 1u) == 0 ? lower : upper;
    for (const uint32_t sign : {0u, 0x8000u}) {
      const float signed_middle = sign == 0 ? middle : -middle;
      const float towards_zero = std::nextafter(signed_middle, 0.0f);
      const float away = std::nextafter(signed_middle, sign == 0 ? HUGE_VALF : -HUGE_VALF);
      CHECK_WITH(narrow_bits<S>(signed_middle) == (even | sign), "%s %04x", format.name, lower);
      CHECK_WITH(narrow_bits<S>(towards_zero) == (lower | sign), "%s %04x", format.name, lower);
      CHECK_WITH(narrow_bits<S>(away) == (upper | sign), "%s %04x", format.name, lower);
    }
  }
}

template <class S>
void test_ends(const Format& format) {
  const uint32_t infinity = format.infinity();
  for (const float huge : {std::numeric_limits<float>::max(), HUGE_VALF}) {
    CHECK_WITH(narrow_bits<S>(huge) == infinity, "%s", format.name);
    CHECK_WITH(narrow_bits<S>(-huge) == (infinity | 0x8000u), "%s", format.name);
  }
  const float tiny = std::numeric_limits<float>::denorm_min();
  CHECK_WITH(narrow_bits<S>(tiny) == 0, "%s", format.name);
  CHECK_WITH(narrow_bits<S>(-tiny) == 0x8000u, "%s", format.name);
  // Also a NaN whose upper bits alone would be an infinity, or would overflow to a number.
  for (const uint32_t nan : {0x7f800001u, 0xff800001u, 0x7fc00000u, 0x7fffffffu, 0xffffffffu}) {
    CHECK_WITH((narrow_bits<S>(float_of(nan)) & 0x7fffu) > infinity, "%s %08x", format.name, nan);
  }
  CHECK_WITH(Largest<S>::value == format.value(infinity - 1), "%s", format.name);
}

template <class S>
void test_format(const Format& format) {
  test_every_number<S>(format);
  test_rounding<S>(format);
  test_ends<S>(format);
}

}  // namespace
}  // namespace circle_kernels

int main() {
  using namespace circle_kernels;
  test_format<Half>({"half", 5, 10});
  test_format<BFloat>({"bfloat", 8, 7});
  return summary();
}
