// Both passes against the reference, over sizes, layouts, labels, formulas and types: of all
// instruction sets that the program's arguments name, since the reference takes longest.
#include <random>
#include <utility>

#include "tests/support/check.h"
#include "tests/support/runs.h"

namespace circle_kernels {
namespace {

using Levels = std::vector<const Level*>;

double worst = 0;  // share of the allowed error

void check_case(const Levels& levels, const Case& asked, const RunOptions& options) {
  const Inputs inputs = make_inputs(asked);
  const Reference expected = reference(inputs);
  for (const Level* level : levels) {
    const Results results = run_both(*level, inputs, options);
    const std::string wrong = difference(inputs, expected, results, true, worst);
    CHECK_WITH(wrong.empty(), "%s: %s; %s; %lld tiles kept, %d threads", level->name, wrong.c_str(),
               describe(asked).c_str(), static_cast<long long>(options.kept_tiles),
               options.threads);
  }
}

// One of each choice for every size, mode and type, drawn so that no two choices move together.
class Draw {
 public:
  template <class Choice, int count>
  Choice from(const Choice (&choices)[count]) {
    return choices[engine_() % count];
  }

 private:
  std::mt19937 engine_{1};
};

const Labels ALL_LABELS[] = {Labels::few_classes, Labels::pairs, Labels::one_class,
                             Labels::all_distinct, Labels::class_weights};
const Layout ALL_LAYOUTS[] = {Layout::contiguous, Layout::transposed, Layout::gaps,
                              Layout::same_row, Layout::same_values};
const Upstream ALL_UPSTREAMS[] = {Upstream::everywhere, Upstream::few_rows,
                                  Upstream::positives_only};
// A small gamma gives all pairs weight, so that none may be missing; a large one spreads logits
// over more than the exponent's range.
const Formula ALL_FORMULAS[] = {circle_formula(80, true),
                                circle_formula(80, false),
                                circle_formula(2, true),
                                circle_formula(600, false),
                                unified_formula(80),
                                unified_formula(3),
                                two_scales(unified_formula(50), 2, 0.5),
                                two_scales(circle_formula(20, false), 100, 0.3)};
const Scalar ALL_SCALARS[] = {Scalar::float16, Scalar::bfloat16, Scalar::float32, Scalar::float64};

void test_sizes(const Levels& levels) {
  const int64_t sizes[] = {1, 2, 95, 96, 97, 193};
  const bool yes_or_no[] = {false, true};
  const int shares[] = {0, 1, 2};  // of two
  const int threads[] = {1, 3};
  Draw draw;
  for (const int64_t rows : sizes) {
    for (const int64_t dim : {1, 3, 8, 67, 130}) {
      for (const bool self_mode : yes_or_no) {
        for (const Scalar scalar : ALL_SCALARS) {
          Case asked;
          asked.scalar = scalar;
          asked.rows = rows;
          asked.columns = self_mode ? 0 : draw.from(sizes);
          asked.dim = dim;
          asked.labels = draw.from(ALL_LABELS);
          asked.layout = draw.from(ALL_LAYOUTS);
          asked.formula = draw.from(ALL_FORMULAS);
          asked.normalize = draw.from(yes_or_no);
          asked.upstream = draw.from(ALL_UPSTREAMS);
          RunOptions options;
          const int64_t tiles = tiles_of(rows, self_mode ? rows : asked.columns, self_mode);
          options.kept_tiles = tiles * draw.from(shares) / 2;
          options.threads = draw.from(threads);
          check_case(levels, asked, options);
        }
      }
    }
  }
}

// Every combination of what decides which code a tile takes.
void test_formulas_and_labels(const Levels& levels) {
  for (const Scalar scalar : {Scalar::float32, Scalar::float64}) {
    for (const Formula& formula : ALL_FORMULAS) {
      for (const Labels labels : ALL_LABELS) {
        for (const bool normalize : {false, true}) {
          for (const int64_t columns : {0, 130}) {
            Case asked;
            asked.scalar = scalar;
            asked.rows = 211;
            asked.columns = columns;
            asked.dim = 10;
            asked.labels = labels;
            asked.formula = formula;
            asked.normalize = normalize;
            check_case(levels, asked, {2, 1});
          }
        }
      }
    }
  }
}

// Enough panels for several chunks of tiles: 16 panels an edge in the backward pass, 48 in the
// forward pass; and enough values of d for several strips of a product.
void test_many_tiles(const Levels& levels) {
  Case asked;
  asked.labels = Labels::pairs;
  asked.dim = 3;
  asked.formula = circle_formula(2, true);
  asked.rows = 17 * PANEL + 5;
  check_case(levels, asked, {100, 2});
  asked.rows = 48 * PANEL + 5;
  asked.upstream = Upstream::few_rows;
  check_case(levels, asked, {0, 2});
  asked.upstream = Upstream::everywhere;
  asked.rows = 150;
  asked.columns = 49 * PANEL + 1;
  check_case(levels, asked, {17, 2});
  asked.labels = Labels::class_weights;
  check_case(levels, asked, {17, 2});
  std::swap(asked.rows, asked.columns);
  check_case(levels, asked, {0, 2});
  asked.labels = Labels::pairs;
  asked.rows = 110;
  for (const int64_t columns : {0, 100}) {
    for (const Scalar scalar : {Scalar::bfloat16, Scalar::float64}) {
      asked.columns = columns;
      asked.dim = 1100;
      asked.scalar = scalar;
      check_case(levels, asked, {1, 3});
    }
  }
}

// Few embeddings whose panels would be mostly padding, on both sides of where that begins to count.
void test_few_deep_rows(const Levels& levels) {
  const int64_t shapes[][2] = {{2, 0}, {64, 0}, {65, 0}, {100, 0}, {1, 1}, {1, 97}, {99, 2}};
  const int64_t dims[] = {8192, 8193, 8704, 9001};
  const Labels labels[] = {Labels::few_classes, Labels::pairs, Labels::class_weights};
  const Layout layouts[] = {Layout::contiguous, Layout::transposed, Layout::gaps};
  const bool yes_or_no[] = {false, true};
  Draw draw;
  for (const auto& [rows, columns] : shapes) {
    for (const Scalar scalar : ALL_SCALARS) {
      Case asked;
      asked.scalar = scalar;
      asked.rows = rows;
      asked.columns = columns;
      asked.dim = draw.from(dims);
      asked.labels = draw.from(labels);
      asked.layout = draw.from(layouts);
      asked.formula = circle_formula(20, true);
      asked.normalize = draw.from(yes_or_no);
      asked.skip_below = draw.from(yes_or_no) ? 0x1p-40 : 0;
      check_case(levels, asked, {draw.from(yes_or_no) ? 1 : 0, 2});
    }
  }
}

// Neither out of the exponent's range on the way to a gradient inside it, nor into nothing.
void test_upstream_sizes(const Levels& levels) {
  for (const double upstream_scale : {0x1p-90, 0x1p45, 0x1p95}) {
    for (const Scalar scalar : {Scalar::bfloat16, Scalar::float32, Scalar::float64}) {
      for (const int64_t columns : {0, 140}) {
        for (const bool normalize : {false, true}) {
          for (const Formula& formula : ALL_FORMULAS) {
            Case asked;
            asked.scalar = scalar;
            asked.rows = 200;
            asked.columns = columns;
            asked.labels = Labels::pairs;
            asked.formula = formula;
            asked.normalize = normalize;
            asked.upstream_scale = upstream_scale;
            check_case(levels, asked, {columns == 0 ? 3 : 0, 1});
          }
        }
      }
    }
  }
}

// Nothing is left for a backward pass; scratch memory has to do.
void test_forward_only(const Levels& levels) {
  for (const int64_t columns : {0, 140}) {
    for (const Scalar scalar : ALL_SCALARS) {
      for (const double skip_below : {0.0, 0.5}) {
        Case asked;
        asked.scalar = scalar;
        asked.rows = 200;
        asked.columns = columns;
        asked.formula = circle_formula(20, true);
        asked.skip_below = skip_below;
        const Inputs inputs = make_inputs(asked);
        const Reference expected = reference(inputs);
        for (const Level* level : levels) {
          const Results results = run_forward_only(*level, inputs, {0, 2});
          const std::string wrong = difference(inputs, expected, results, false, worst);
          CHECK_WITH(wrong.empty(), "%s: %s; %s", level->name, wrong.c_str(),
                     describe(asked).c_str());
        }
      }
    }
  }
}

}  // namespace
}  // namespace circle_kernels

int main(int count, char** arguments) {
  using namespace circle_kernels;
  const Levels levels = levels_from_arguments(count, arguments);
  if (levels.empty()) return 77;
  test_sizes(levels);
  test_formulas_and_labels(levels);
  test_many_tiles(levels);
  test_few_deep_rows(levels);
  test_upstream_sizes(levels);
  test_forward_only(levels);
  std::printf("largest error %.2f of what may be\n", worst);
  return summary();
}
