// Results that have to be the same to the last bit: from run to run, with any number of threads,
// and whether the other side's gradient is wanted. Log-sum-exps also whatever is kept, and
// gradients if it is similarities; kept weights are rounded once more.
#include "tests/support/check.h"
#include "tests/support/runs.h"

namespace circle_kernels {
namespace {

void check_same(const Results& expected, const Results& results, const RunOptions& options,
                const Case& asked) {
  const auto same = [&](const Buffer& a, const Buffer& b, const char* name) {
    CHECK_WITH(a.same_bytes(b), "%s differs; %s; %lld tiles kept, %d threads", name,
               describe(asked).c_str(), static_cast<long long>(options.kept_tiles),
               options.threads);
  };
  same(expected.lse_pos, results.lse_pos, "lse_pos");
  same(expected.lse_neg, results.lse_neg, "lse_neg");
  if (options.grad_rows) same(expected.grad_rows, results.grad_rows, "grad_rows");
  if (options.grad_columns) same(expected.grad_columns, results.grad_columns, "grad_columns");
}

void check_repeatable(const Level& level, const Case& asked) {
  const Inputs inputs = make_inputs(asked);
  const Results nothing_kept = run_both(level, inputs, {0, 1});
  const int64_t tiles = inputs.tiles();
  for (const int64_t kept : {int64_t{0}, int64_t{1}, tiles / 2, tiles}) {
    const Results expected = run_both(level, inputs, {kept, 1});
    const auto repeat = [&](const RunOptions& options) {
      check_same(expected, run_both(level, inputs, options), options, asked);
    };
    for (const int threads : {1, 2, 3}) repeat({kept, threads});
    const bool same_gradients = asked.skip_below > 0;
    check_same(nothing_kept, expected, {kept, 1, same_gradients, same_gradients}, asked);
    if (asked.self_mode()) continue;
    repeat({kept, 3, true, false});
    repeat({kept, 1, false, true});
    repeat({kept, 3, false, false});
  }
}

void test_repeatable(const Level& level) {
  for (const Scalar scalar : {Scalar::float32, Scalar::float64, Scalar::bfloat16}) {
    for (const int64_t columns : {0, 201}) {
      for (const double gamma : {80.0, 600.0}) {
        for (const double skip_below : {0.0, 0.3}) {
          Case asked;
          asked.scalar = scalar;
          asked.rows = 303;
          asked.columns = columns;
          asked.dim = 130;  // enough for panels of the gradient to be shared between threads
          asked.formula = circle_formula(gamma, true);
          asked.skip_below = skip_below;
          check_repeatable(level, asked);
        }
      }
    }
  }
  // Several chunks, whose partial results are merged.
  Case asked;
  asked.rows = 20 * PANEL + 1;
  asked.labels = Labels::pairs;
  asked.formula = circle_formula(80, false);
  check_repeatable(level, asked);
  asked.columns = 50;
  check_repeatable(level, asked);
  asked.both_sides = true;
  check_repeatable(level, asked);
}

// Few embeddings of many dimensions, whose sums threads share.
void test_deep(const Level& level) {
  for (const Scalar scalar : {Scalar::float32, Scalar::float16}) {
    for (const int64_t columns : {0, 97}) {
      Case asked;
      asked.scalar = scalar;
      asked.rows = 3;
      asked.columns = columns;
      asked.dim = 20000;
      asked.formula = circle_formula(80, true);
      check_repeatable(level, asked);
    }
  }
}

// Several chunks, of which the later ones would write beside the diagonal.
void test_no_gradient_wanted(const Level& level) {
  Case asked;
  asked.rows = 17 * PANEL;
  asked.formula = circle_formula(32, true);
  const Inputs inputs = make_inputs(asked);
  RunOptions options;
  options.grad_rows = false;
  const Results results = run_both(level, inputs, options);
  CHECK(results.grad_rows.count() == 0);
}

}  // namespace
}  // namespace circle_kernels

int main(int count, char** arguments) {
  using namespace circle_kernels;
  const Level* level = level_from_arguments(count, arguments);
  if (level == nullptr) return 77;
  test_repeatable(*level);
  test_deep(*level);
  test_no_gradient_wanted(*level);
  return summary();
}
