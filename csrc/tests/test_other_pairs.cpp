// Both passes where more is asked for than rows' sums by labels: columns that count pairs for
// themselves, own copies that are left out, formulas of functions, which are closed ones here, and
// the gradients of scales.
#include "tests/support/check.h"
#include "tests/support/runs.h"

namespace circle_kernels {
namespace {

double worst = 0;  // share of the allowed error

struct Options {
  bool both_sides, own_copies, by_functions;
};

const Options ALL_OPTIONS[] = {{true, false, false}, {false, true, false}, {true, true, false},
                               {false, false, true}, {true, false, true},  {false, true, true},
                               {false, false, false}};

const Formula ALL_FORMULAS[] = {circle_formula(80, true), circle_formula(600, false),
                                unified_formula(3), two_scales(unified_formula(50), 2, 0.5),
                                two_scales(circle_formula(20, false), 100, 0.3)};

Case with_options(Case asked, const Options& options) {
  asked.both_sides = options.both_sides && !asked.self_mode();
  asked.own_copies = options.own_copies && !asked.self_mode();
  asked.by_functions = options.by_functions;
  return asked;
}

void check_case(const Level& level, const Case& asked, const RunOptions& options) {
  const Inputs inputs = make_inputs(asked);
  const Results results = run_both(level, inputs, options);
  const Reference expected = reference(inputs);
  const Problem problem = inputs.problem(options.kept_tiles, options.threads);
  const Buffer of_scales = scale_gradients_of(problem, inputs, results);
  for (const std::string& wrong : {difference(inputs, expected, results, true, worst),
                                   scale_difference(inputs, expected, of_scales, worst)}) {
    CHECK_WITH(wrong.empty(), "%s: %s; %s; %lld tiles kept, %d threads", level.name, wrong.c_str(),
               describe(asked).c_str(), static_cast<long long>(options.kept_tiles),
               options.threads);
  }
}

void test_formulas_and_labels(const Level& level) {
  for (const Scalar scalar : {Scalar::float32, Scalar::float64}) {
    for (const Formula& formula : ALL_FORMULAS) {
      for (const Labels labels : {Labels::few_classes, Labels::pairs, Labels::class_weights}) {
        for (const Options& options : ALL_OPTIONS) {
          for (const int64_t kept : {0, 3}) {
            Case asked;
            asked.scalar = scalar;
            asked.rows = 130;
            asked.columns = labels == Labels::pairs && !options.both_sides ? 0 : 101;
            asked.labels = labels;
            asked.formula = formula;
            asked.normalize = kept == 0;
            check_case(level, with_options(asked, options), {kept, 1});
          }
        }
      }
    }
  }
}

void test_sizes(const Level& level) {
  const int64_t sizes[][2] = {{1, 1}, {1, 97}, {97, 1}, {96, 192}, {193, 95}};
  for (const auto& [rows, columns] : sizes) {
    for (const Scalar scalar :
         {Scalar::float16, Scalar::bfloat16, Scalar::float32, Scalar::float64}) {
      for (const Options& options : ALL_OPTIONS) {
        for (const Upstream upstream : {Upstream::everywhere, Upstream::few_rows}) {
          Case asked;
          asked.scalar = scalar;
          asked.rows = rows;
          asked.columns = columns;
          asked.dim = 67;
          asked.formula = circle_formula(20, true);
          asked.upstream = upstream;
          asked.skip_below = upstream == Upstream::everywhere && rows > 1 ? 0x1p-60 : 0;
          check_case(level, with_options(asked, options), {1, 2});
        }
      }
    }
  }
}

// Several chunks, on either side; few rows of many dimensions; gradients of any size.
void test_many_tiles(const Level& level) {
  for (const Options& options : ALL_OPTIONS) {
    Case asked;
    asked.labels = Labels::pairs;
    asked.dim = 3;
    asked.formula = circle_formula(2, true);
    asked.rows = 150;
    asked.columns = 49 * PANEL + 1;
    check_case(level, with_options(asked, options), {17, 2});
    std::swap(asked.rows, asked.columns);
    asked.upstream_scale = 0x1p-90;
    check_case(level, with_options(asked, options), {17, 2});
    asked.upstream_scale = 0x1p95;
    asked.rows = 33;
    asked.columns = 65;
    asked.dim = 8704;
    check_case(level, with_options(asked, options), {0, 2});
  }
}

}  // namespace
}  // namespace circle_kernels

int main(int count, char** arguments) {
  using namespace circle_kernels;
  const Level* level = level_from_arguments(count, arguments);
  if (level == nullptr) return 77;
  test_formulas_and_labels(*level);
  test_sizes(*level);
  test_many_tiles(*level);
  std::printf("%s: largest error %.2f of what may be\n", level->name, worst);
  return summary();
}
