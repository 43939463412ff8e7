// What the forward pass leaves is taken by the backward pass of the same problem and by no other;
// sizes that nobody could count in bytes are refused before anything is allocated.
#include <cstring>
#include <functional>
#include <limits>
#include <new>
#include <stdexcept>

#include "common/memory.h"
#include "tests/support/check.h"
#include "tests/support/runs.h"

namespace circle_kernels {
namespace {

template <class Error, class Call>
bool throws(Call call) {
  try {
    call();
  } catch (const Error&) {
    return true;
  }
  return false;
}

Case small_case() {
  Case asked;
  asked.rows = 130;
  asked.formula = circle_formula(20, true);
  return asked;
}

using Change = std::function<void(Problem&, Results&)>;

bool refused(const Level& level, const Case& asked, const Change& change) {
  const Inputs inputs = make_inputs(asked);
  const RunOptions options{2, 1};
  Results results = run_both(level, inputs, options);
  Problem problem = inputs.problem(options.kept_tiles, options.threads);
  change(problem, results);
  return throws<std::runtime_error>([&] { run_backward_of(problem, inputs, options, results); });
}

// The header's numbers, as they lie there.
void set_number(Results& results, int place, int64_t value) {
  std::memcpy(static_cast<char*>(results.saved.data()) + 8 * place, &value, sizeof value);
}

void test_other_problems_are_refused(const Level& level) {
  CHECK(!refused(level, small_case(), [](Problem&, Results&) {}));
  const auto check = [&](const char* what, const Change& change) {
    CHECK_WITH(refused(level, small_case(), change), "%s", what);
  };
  check("fewer rows", [](Problem& problem, Results&) {
    problem.rows.count = problem.columns.count = 97;  // as many panels
  });
  check("more columns", [](Problem& problem, Results&) {
    problem.self_mode = false;
    problem.columns.count = 97;
  });
  check("references", [](Problem& problem, Results&) { problem.self_mode = false; });
  check("both sides", [](Problem& problem, Results&) { problem.both_sides = true; });
  check("own copies",
        [](Problem& problem, Results&) { problem.own_columns = problem.rows.labels; });
  check("other dim", [](Problem& problem, Results&) { --problem.rows.dim; });
  check("skip_below", [](Problem& problem, Results&) { problem.skip_below = 0.5; });
  check("double", [](Problem& problem, Results&) { problem.scalar = Scalar::float64; });
  check("cleared", [](Problem&, Results& results) {
    std::memset(results.saved.data(), 0, results.saved.bytes());
  });
  check("rounded to half", [](Problem&, Results& results) {
    auto* words = static_cast<uint32_t*>(results.saved.data());
    for (int64_t word = 0; word < results.saved.bytes() / 4; ++word) words[word] &= ~0x1fffu;
  });
  check("cut short", [](Problem&, Results& results) {
    Buffer shorter(Scalar::float32, results.saved.count() - 1);
    std::memcpy(shorter.data(), results.saved.data(), shorter.bytes());
    results.saved = std::move(shorter);
  });
  check("nothing", [](Problem&, Results& results) { results.saved = Buffer(Scalar::float32, 0); });
  check("more tiles", [](Problem&, Results& results) { set_number(results, 4, 4); });
  check("fewer tiles", [](Problem&, Results& results) { set_number(results, 4, 1); });
  for (const int64_t tiles : {int64_t{-1}, std::numeric_limits<int64_t>::max()}) {
    check("no number of tiles", [&](Problem&, Results& results) { set_number(results, 4, tiles); });
  }
  for (const int64_t place : {100, -1}) {
    check("no level", [&](Problem&, Results& results) {
      const auto index = static_cast<int32_t>(place);
      std::memcpy(static_cast<char*>(results.saved.data()) + 40, &index, sizeof index);
    });
  }
}

// The number of tiles is the forward pass's, whatever is asked for later.
void test_tiles_are_those_that_were_kept(const Level& level) {
  const Inputs inputs = make_inputs(small_case());
  const Results expected = run_both(level, inputs, {2, 1});
  Results results = run_both(level, inputs, {2, 1});
  for (int64_t index = 0; index < results.grad_rows.count(); ++index) {
    results.grad_rows.set(index, 0);
  }
  run_backward_of(inputs.problem(0, 1), inputs, {}, results);
  CHECK(results.grad_rows.same_bytes(expected.grad_rows));
}

void test_forward_needs_exactly_its_memory(const Level& level) {
  const Inputs inputs = make_inputs(small_case());
  const auto refused_with = [&](int64_t kept, int64_t bytes) {
    Results results = run_both(level, inputs, {2, 1});
    return throws<std::invalid_argument>([&] {
      run_forward(level, inputs.problem(kept, 1),
                  {results.lse_pos.data(), results.lse_neg.data(), results.saved.data(), bytes});
    });
  };
  const int64_t bytes = run_both(level, inputs, {2, 1}).saved.bytes();
  CHECK(!refused_with(2, bytes));
  CHECK(refused_with(2, bytes - 4));
  CHECK(refused_with(2, 0));
  CHECK(refused_with(3, bytes));
  CHECK(refused_with(4, bytes));  // of three tiles
  CHECK(refused_with(-1, bytes));
}

void test_sizes_that_overflow(const Level& level) {
  constexpr int64_t MOST = std::numeric_limits<int64_t>::max();
  const float value = 1;
  const int64_t label = 0;
  float lse[2];
  const auto too_large = [&](int64_t rows, int64_t columns, int64_t dim) {
    Problem problem{};
    problem.scalar = Scalar::float32;
    // Views that repeat one value, as torch's expand() makes them.
    problem.rows = {&value, rows, dim, 0, 0, &label, 0};
    problem.columns = {&value, columns, dim, 0, 0, &label, 0};
    problem.self_mode = columns == 0;
    if (problem.self_mode) problem.columns = problem.rows;
    problem.formula = circle_formula(20, true);
    problem.threads = 1;
    return throws<std::bad_alloc>([&] { run_forward(level, problem, {lse, lse, nullptr, 0}); }) &&
           throws<std::bad_alloc>([&] { run_backward(problem, {lse, 8, lse, lse}, {}); });
  };
  CHECK(too_large(2, 0, int64_t{1} << 58));
  CHECK(too_large(2, 0, int64_t{1} << 40));
  CHECK(too_large(2, 0, MOST));
  CHECK(too_large(2, 2, int64_t{1} << 58));
  CHECK(too_large(MOST, 0, 1));
  CHECK(too_large(2, MOST, 1));
  CHECK(too_large(MOST, MOST, MOST));
  CHECK(too_large(int64_t{1} << 40, int64_t{1} << 40, 1));

  Arena arena;
  CHECK(throws<std::bad_alloc>([&] { arena.allocate(int64_t{1} << 61, 8); }));
  CHECK(throws<std::bad_alloc>([&] { arena.allocate(int64_t{1} << 60, 8); }));
  CHECK(throws<std::bad_alloc>([&] { arena.allocate(MOST, 2); }));
  CHECK(throws<std::bad_alloc>([&] { arena.allocate(MOST, 1); }));
  CHECK(throws<std::bad_alloc>([&] { arena.allocate(-1, 4); }));
  CHECK(arena.allocate(0, 4) != nullptr);
  for (const std::size_t less : {0, 1, 63, 64, 65, 4096}) {
    CHECK(throws<std::bad_alloc>([&] { Block block(SIZE_MAX - less); }));
    CHECK(throws<std::bad_alloc>([&] { Block block(SIZE_MAX / 2 - less); }));
  }
}

}  // namespace
}  // namespace circle_kernels

int main(int count, char** arguments) {
  using namespace circle_kernels;
  const Level* level = level_from_arguments(count, arguments);
  if (level == nullptr) return 77;
  test_other_problems_are_refused(*level);
  test_tiles_are_those_that_were_kept(*level);
  test_forward_needs_exactly_its_memory(*level);
  test_sizes_that_overflow(*level);
  return summary();
}
