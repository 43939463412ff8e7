// What programs are made of against the standard library, one precision wider, and torch's rules
// for NaN. Compiled once per instruction set, as test_exp2.cpp.
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "kernels/tiles/programs.h"
#include "tests/support/check.h"

namespace circle_kernels {

int run_tests();

namespace {

template <class T>
struct Wider;
template <>
struct Wider<float> {
  using type = double;
};
template <>
struct Wider<double> {
  using type = long double;
};

template <class T>
std::vector<T> row_of(Operation operation, const std::vector<T>& a, const std::vector<T>& b,
                      const std::vector<T>& c) {
  std::vector<T> result(PANEL);
  run_instruction<T>(operation, a.data(), b.data(), c.data(), result.data());
  return result;
}

// What a function of one number gives for so many, the last one again and again in the last row.
template <class T>
std::vector<T> results_of(Operation operation, std::vector<T> values) {
  const std::size_t count = values.size();
  while (values.size() % PANEL != 0) values.push_back(values.back());
  std::vector<T> results;
  for (std::size_t first = 0; first < values.size(); first += PANEL) {
    const std::vector<T> row(values.begin() + first, values.begin() + first + PANEL);
    const std::vector<T> of_row = row_of<T>(operation, row, row, row);
    results.insert(results.end(), of_row.begin(), of_row.end());
  }
  results.resize(count);
  return results;
}

constexpr int POINTS = 96 * 500;

// Numbers of any size up to `most`, both near 0 and all over the range.
template <class T>
std::vector<T> points(double least, double most) {
  std::mt19937_64 engine(1);
  const auto uniform = [&] { return static_cast<double>(engine() >> 11) * 0x1p-53; };
  std::vector<T> values;
  for (int index = 0; index < POINTS; ++index) {
    const double place = least + (most - least) * uniform();
    const double near_zero = std::ldexp(2 * uniform() - 1, -(index % 100));
    const double value = index % 2 == 0 ? place : near_zero;
    values.push_back(static_cast<T>(value < least || value > most ? place : value));
  }
  return values;
}

template <class T, class Function>
void check_function(const char* name, Operation operation, double least, double most, double bound,
                    Function function) {
  using W = typename Wider<T>::type;
  const std::vector<T> values = points<T>(least, most);
  const std::vector<T> results = results_of(operation, values);
  double worst = 0, at = 0;
  for (std::size_t index = 0; index < values.size(); ++index) {
    const W expected = function(static_cast<W>(values[index]));
    const W size = std::max(std::abs(expected), static_cast<W>(std::numeric_limits<T>::min()));
    const W error = std::abs(results[index] - expected) / size / std::numeric_limits<T>::epsilon();
    if (error <= worst) continue;  // not "greater than", so that NaN is an error
    worst = error == error ? static_cast<double>(error) : HUGE_VAL;
    at = values[index];
  }
  std::printf("%s of %zu bytes: %.2f eps at most, at %.17g\n", name, sizeof(T), worst, at);
  CHECK_WITH(worst <= bound, "%s of %zu bytes: %.2f eps at %.17g", name, sizeof(T), worst, at);
}

template <class T>
void test_errors() {
  constexpr double HIGH = sizeof(T) == 4 ? 88.7 : 709.7, LOW = sizeof(T) == 4 ? -87.3 : -708.3;
  constexpr double LARGE = sizeof(T) == 4 ? 1e38 : 1e300;
  constexpr double EXACT = 0.51, FEW = 2, SEVERAL = 5;
  const auto check = [](auto... arguments) { check_function<T>(arguments...); };
  check("exp", Operation::exp, LOW, HIGH, FEW, [](auto x) { return std::exp(x); });
  check("expm1", Operation::expm1, LOW, HIGH, SEVERAL, [](auto x) { return std::expm1(x); });
  for (const double most : {4.0, LARGE}) {
    check("log", Operation::log, 1e-38, most, FEW, [](auto x) { return std::log(x); });
    check("log1p", Operation::log1p, -0.999, most, SEVERAL, [](auto x) { return std::log1p(x); });
    check("sqrt", Operation::sqrt, 0.0, most, EXACT, [](auto x) { return std::sqrt(x); });
  }
  check("tanh", Operation::tanh, -30.0, 30.0, SEVERAL, [](auto x) { return std::tanh(x); });
  check("sigmoid", Operation::sigmoid, LOW, HIGH, SEVERAL,
        [](auto x) { return 1 / (1 + std::exp(-x)); });
}

// Where these are near 0 it is the absolute error that counts.
template <class T>
void test_turning() {
  using W = typename Wider<T>::type;
  for (const double most : {1.0, 99.0, 1e6}) {
    const std::vector<T> values = points<T>(-most, most);
    const std::vector<T> sines = results_of(Operation::sin, values);
    const std::vector<T> cosines = results_of(Operation::cos, values);
    W worst = 0;
    for (std::size_t index = 0; index < values.size(); ++index) {
      const W x = values[index], error = std::max(std::abs(sines[index] - std::sin(x)),
                                                  std::abs(cosines[index] - std::cos(x)));
      if (!(error <= worst)) worst = error == error ? error : static_cast<W>(HUGE_VAL);
      const bool small = std::abs(x) < 0.5;
      CHECK(!small || std::abs(sines[index] - std::sin(x)) <=
                          2 * std::numeric_limits<T>::epsilon() * std::abs(x));
    }
    const auto in_epsilons = static_cast<double>(worst / std::numeric_limits<T>::epsilon());
    std::printf("sin and cos of %zu bytes to %g: %.2f eps\n", sizeof(T), most, in_epsilons);
    CHECK_WITH(in_epsilons <= 2, "%.2f eps to %g", in_epsilons, most);
  }
}

template <class T>
bool is_same(T a, T b) {
  return a == b || (a != a && b != b);
}

// At the ends of their ranges and beyond, as the standard library has it.
template <class T>
void test_ends() {
  constexpr T NONE = std::numeric_limits<T>::quiet_NaN(), END = std::numeric_limits<T>::infinity();
  struct Function {
    Operation operation;
    T (*standard)(T);
  };
  const Function functions[] = {
      {Operation::exp, [](T x) { return std::exp(x); }},
      {Operation::expm1, [](T x) { return std::expm1(x); }},
      {Operation::log, [](T x) { return std::log(x); }},
      {Operation::log1p, [](T x) { return std::log1p(x); }},
      {Operation::sqrt, [](T x) { return std::sqrt(x); }},
      {Operation::sin, [](T x) { return std::sin(x); }},
      {Operation::cos, [](T x) { return std::cos(x); }},
      {Operation::tanh, [](T x) { return std::tanh(x); }},
      {Operation::absolute, [](T x) { return std::abs(x); }},
      {Operation::negative, [](T x) { return -x; }},
      {Operation::copy, [](T x) { return x; }},
      {Operation::sign, [](T x) { return T(x > 0) - T(x < 0); }},
      {Operation::sigmoid, [](T x) { return 1 / (1 + std::exp(-x)); }},
  };
  for (const Function& function : functions) {
    for (const T value : {T(0), T(-0.0), T(1), T(-1), T(-2), END, -END, NONE, T(1e4), T(-1e4)}) {
      const T expected = function.standard(value);
      const bool is_finite = expected - expected == 0;
      if (is_finite && expected != std::round(expected)) continue;  // test_errors() has these
      const T result = results_of<T>(function.operation, {value})[0];
      CHECK_WITH(is_same(result, expected), "%s of %g is %g instead of %g",
                 OPERATION_NAMES[static_cast<int>(function.operation)].name,
                 static_cast<double>(value), static_cast<double>(result),
                 static_cast<double>(expected));
    }
  }
}

// Of two numbers, and of masks that comparisons give.
template <class T>
void test_pairs() {
  constexpr T NONE = std::numeric_limits<T>::quiet_NaN(), END = std::numeric_limits<T>::infinity();
  const T values[] = {T(0), T(1), T(-2.5), END, -END, NONE};
  for (const T x : values) {
    for (const T y : values) {
      const std::vector<T> a(PANEL, x), b(PANEL, y);
      const auto number = [&](Operation operation) {
        return row_of<T>(operation, a, b, b)[PANEL - 1];
      };
      const auto check = [&](Operation operation, T expected) {
        CHECK_WITH(is_same(number(operation), expected), "%s of %g and %g is %g instead of %g",
                   OPERATION_NAMES[static_cast<int>(operation)].name, static_cast<double>(x),
                   static_cast<double>(y), static_cast<double>(number(operation)),
                   static_cast<double>(expected));
      };
      check(Operation::add, x + y);
      check(Operation::subtract, x - y);
      check(Operation::multiply, x * y);
      check(Operation::divide, x / y);
      const bool any_nan = x != x || y != y;
      check(Operation::maximum, any_nan ? NONE : x > y ? x : y);
      check(Operation::minimum, any_nan ? NONE : x < y ? x : y);

      const auto mask = [&](Operation operation) { return row_of<T>(operation, a, b, b); };
      const auto holds = [&](const std::vector<T>& of) {
        return row_of<T>(Operation::number, of, of, of)[0] == 1;
      };
      const std::vector<T> greater = mask(Operation::greater), equal = mask(Operation::equal);
      CHECK(holds(greater) == (x > y));
      CHECK(holds(equal) == (x == y));
      CHECK(holds(mask(Operation::greater_equal)) == (x >= y));
      CHECK(holds(mask(Operation::not_equal)) == (x != y));
      const auto combined = [&](Operation operation) {
        return holds(row_of<T>(operation, greater, equal, equal));
      };
      CHECK(combined(Operation::logical_or) == (x >= y));
      CHECK(!combined(Operation::logical_and));
      CHECK(combined(Operation::logical_not) == !(x > y));
      const T chosen = row_of<T>(Operation::where, greater, a, b)[0];
      CHECK(is_same(chosen, x > y ? x : y));
    }
  }
}

}  // namespace

int run_tests() {
  const auto test = [](auto zero) {
    using T = decltype(zero);
    test_errors<T>();
    test_turning<T>();
    test_ends<T>();
    test_pairs<T>();
  };
  test(float{});
  test(double{});
  return summary();
}

}  // namespace circle_kernels
