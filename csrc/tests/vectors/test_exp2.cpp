// exp2.h against the standard library's, one precision wider. Compiled once per instruction set,
// since its roundings depend on whether there is a fused multiply-add.
#include <cfloat>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <random>

#include "kernels/vectors/exp2.h"
#include "tests/support/check.h"

namespace circle_kernels {

int run_tests();

namespace {

// Sanitizers make every step slow and find nothing more in more of them.
#if defined(__SANITIZE_ADDRESS__)
constexpr uint32_t FLOAT_STEP = 127;
constexpr int DOUBLE_POINTS = 100'000;
#else
constexpr uint32_t FLOAT_STEP = 8;
constexpr int DOUBLE_POINTS = 1'000'000;
#endif

double reference(float x) { return std::exp2(static_cast<double>(x)); }
long double reference(double x) { return std::exp2(static_cast<long double>(x)); }

template <class T>
T one_exp2(T x) {
  return exp2<T>(splat(x))[0];
}

// The largest relative error of the values it is given, in units of the type's epsilon.
template <class T>
class ErrorSweep {
 public:
  void add(T x) {
    arguments_[used_++] = x;
    if (used_ == LANES<T>) measure();
  }
  double worst() {
    while (used_ > 0) add(T(0));
    return worst_;
  }
  T worst_argument() const { return worst_argument_; }

 private:
  void measure() {
    T results[LANES<T>];
    store(results, exp2<T>(load(arguments_)));
    for (int lane = 0; lane < LANES<T>; ++lane) {
      const auto expected = reference(arguments_[lane]);
      const auto error = std::abs((results[lane] - expected) / expected);
      const double in_epsilons = static_cast<double>(error / std::numeric_limits<T>::epsilon());
      if (in_epsilons <= worst_) continue;  // not "greater than", so that NaN is an error
      worst_ = in_epsilons == in_epsilons ? in_epsilons : HUGE_VAL;
      worst_argument_ = arguments_[lane];
    }
    used_ = 0;
  }

  T arguments_[LANES<T>];
  int used_ = 0;
  double worst_ = 0;
  T worst_argument_ = 0;
};

template <class T>
void check_error(ErrorSweep<T>& sweep, double bound, const char* type) {
  const double worst = sweep.worst();
  std::printf("%s: largest relative error %.4f eps, at %.17g\n", type, worst,
              static_cast<double>(sweep.worst_argument()));
  CHECK_WITH(worst <= bound, "%s %.4f > %.4f", type, worst, bound);
}

void test_float_error() {
  // Argument reduction is exact and 2^n is too, so the error is that of the fraction: the dense
  // part is where fractions differ in their bits; smaller ones give nearly 1.
  ErrorSweep<float> sweep;
  const auto add_range = [&](float low, float high, uint32_t step) {
    uint32_t first, last;
    std::memcpy(&first, &low, sizeof first);
    std::memcpy(&last, &high, sizeof last);
    for (uint32_t bits = first; bits <= last; bits += step) {
      float x;
      std::memcpy(&x, &bits, sizeof x);
      sweep.add(x);
      sweep.add(-x);
    }
  };
  add_range(0.0f, 0x1p-10f, 10007);
  add_range(0x1p-10f, 0.5f, FLOAT_STEP);
  add_range(0.5f, 126.0f, FLOAT_STEP);
  check_error(sweep, 1, "float");
}

void test_double_error() {
  std::mt19937_64 engine(1);
  const auto uniform = [&](double low, double high) {
    return low + (high - low) * (static_cast<double>(engine() >> 11) * 0x1p-53);
  };
  ErrorSweep<double> sweep;
  for (int count = 0; count < DOUBLE_POINTS; ++count) {
    sweep.add(uniform(-0.5, 0.5));
    sweep.add(uniform(-1022, 1022));
    sweep.add(std::ldexp(uniform(-1, 1), -count % 60));
  }
  // Where long double is no wider, the yardstick has an error of its own.
  const double slack = LDBL_MANT_DIG > DBL_MANT_DIG ? 0 : 1;
  check_error(sweep, 1 + slack, "double");
}

template <class T>
void test_special_values() {
  constexpr T LOWEST = Exp2<T>::LOWEST, HIGHEST = Exp2<T>::HIGHEST;
  constexpr T INFINITE = std::numeric_limits<T>::infinity();
  constexpr T QUIET_NAN = std::numeric_limits<T>::quiet_NaN();
  const T smallest = std::ldexp(T(1), static_cast<int>(LOWEST));
  const T largest = std::ldexp(T(1), static_cast<int>(HIGHEST));
  for (const T below : {std::nextafter(LOWEST, -INFINITE), LOWEST - 1, T(-1e30), -INFINITE,
                        -std::numeric_limits<T>::max()}) {
    CHECK_WITH(one_exp2(below) == smallest, "%g", static_cast<double>(below));
  }
  for (const T above : {std::nextafter(HIGHEST, INFINITE), HIGHEST + 1, T(1e30), INFINITE,
                        std::numeric_limits<T>::max()}) {
    CHECK_WITH(one_exp2(above) == largest, "%g", static_cast<double>(above));
  }
  for (int exponent = static_cast<int>(LOWEST); exponent <= static_cast<int>(HIGHEST); ++exponent) {
    CHECK_WITH(one_exp2(static_cast<T>(exponent)) == std::ldexp(T(1), exponent), "%d", exponent);
  }
  // One lane's NaN is that lane's only.
  for (const T nan : {QUIET_NAN, -QUIET_NAN, std::numeric_limits<T>::signaling_NaN()}) {
    for (int lane = 0; lane < LANES<T>; ++lane) {
      Vec<T> x{};
      x[lane] = nan;
      const Vec<T> result = exp2<T>(x);
      for (int other = 0; other < LANES<T>; ++other) {
        CHECK(other == lane ? result[other] != result[other] : result[other] == 1);
      }
    }
  }
}

}  // namespace

int run_tests() {
  test_float_error();
  test_double_error();
  test_special_values<float>();
  test_special_values<double>();
  return summary();
}

}  // namespace circle_kernels
