// Rows that are NaN, infinite or zero: exactly the results that saw them are NaN, and a zero
// vector's gradient is finite. The reference lets NaN flow through plain arithmetic.
#include <cmath>

#include "tests/support/check.h"
#include "tests/support/runs.h"

namespace circle_kernels {
namespace {

double worst = 0;

const Scalar ALL_SCALARS[] = {Scalar::float16, Scalar::bfloat16, Scalar::float32, Scalar::float64};

const Upstream ALL_UPSTREAMS[] = {Upstream::everywhere, Upstream::few_rows,
                                  Upstream::positives_only};

Case base_case(Scalar scalar, int64_t columns, bool normalize) {
  Case asked;
  asked.scalar = scalar;
  asked.rows = 200;
  asked.columns = columns;
  asked.dim = 9;
  asked.normalize = normalize;
  asked.formula = circle_formula(20, true);
  return asked;
}

void check_inputs(const Level& level, const Inputs& inputs, const Reference& expected,
                  const char* what) {
  for (const int64_t kept : {int64_t{0}, inputs.tiles()}) {
    const Results results = run_both(level, inputs, {kept, 2});
    const std::string wrong = difference(inputs, expected, results, true, worst);
    CHECK_WITH(wrong.empty(), "%s; %s; %s", what, wrong.c_str(), describe(inputs.asked).c_str());
  }
}

int64_t count_nan(const std::vector<double>& values) {
  int64_t count = 0;
  for (const double value : values) count += value != value;
  return count;
}

// One broken value among the columns; in self mode these are the rows.
void test_broken_column(const Level& level) {
  for (const Scalar scalar : ALL_SCALARS) {
    for (const int64_t columns : {0, 150}) {
      for (const bool normalize : {false, true}) {
        for (const double value : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
          for (const Upstream upstream : ALL_UPSTREAMS) {
            Case asked = base_case(scalar, columns, normalize);
            asked.upstream = upstream;
            Inputs inputs = make_inputs(asked);
            Side& side = columns == 0 ? inputs.rows : inputs.columns;
            side.set(101, 4, value);
            const Reference expected = reference(inputs);
            // Every row sees the broken one, either among its positives or among its negatives; in
            // self mode it is itself broken for both.
            const int64_t broken = count_nan(expected.lse_pos) + count_nan(expected.lse_neg);
            CHECK(broken == inputs.rows.count + (columns == 0 ? 1 : 0));
            check_inputs(level, inputs, expected, "broken column");
          }
        }
      }
    }
  }
}

void test_broken_row(const Level& level) {
  for (const bool normalize : {false, true}) {
    Inputs inputs = make_inputs(base_case(Scalar::float32, 150, normalize));
    inputs.rows.set(7, 0, std::nan(""));
    const Reference expected = reference(inputs);
    CHECK(count_nan(expected.lse_pos) == 1 && count_nan(expected.lse_neg) == 1);
    check_inputs(level, inputs, expected, "broken row");
  }
}

// Only what saw them: an own copy is not seen, and columns that count pairs see rows.
void test_other_pairs(const Level& level) {
  for (const Labels labels : {Labels::few_classes, Labels::pairs, Labels::class_weights}) {
    for (const bool both_sides : {false, true}) {
      for (const bool own_copies : {false, true}) {
        for (const bool by_functions : {false, true}) {
          Case asked = base_case(Scalar::float32, 150, true);
          asked.labels = labels;
          asked.both_sides = both_sides;
          asked.own_copies = own_copies;
          asked.by_functions = by_functions;
          Inputs inputs = make_inputs(asked);
          inputs.rows.set(7, 0, std::nan(""));
          check_inputs(level, inputs, reference(inputs), "broken row");
          if (own_copies) inputs.own_columns[30] = inputs.own_columns[31] = 101;
          if (own_copies) inputs.own_columns[7] = 12;
          inputs.columns.set(101, 4, HUGE_VAL);
          const Reference expected = reference(inputs);
          CHECK(!own_copies || !std::isnan(expected.lse_pos[30]) ||
                !std::isnan(expected.lse_neg[30]));
          check_inputs(level, inputs, expected, "broken row and column");
        }
      }
    }
  }
}

// An empty set stays empty whatever is in the row, and what comes from upstream for it is nobody's.
void test_empty_sets(const Level& level) {
  for (const Labels labels : {Labels::all_distinct, Labels::one_class}) {
    Case asked = base_case(Scalar::float32, 0, true);
    asked.labels = labels;
    Inputs inputs = make_inputs(asked);
    inputs.rows.set(3, 3, std::nan(""));
    check_inputs(level, inputs, reference(inputs), "broken row, empty set");

    inputs = make_inputs(asked);
    const bool no_positives = labels == Labels::all_distinct;
    Buffer& upstream = no_positives ? inputs.grad_lse_pos : inputs.grad_lse_neg;
    for (int64_t row = 0; row < inputs.rows.count; ++row) upstream.set(row, 0);
    const Reference expected = reference(inputs);
    for (int64_t row = 0; row < inputs.rows.count; ++row) upstream.set(row, std::nan(""));
    check_inputs(level, inputs, expected, "NaN from upstream for an empty set");
  }
}

// What comes from upstream as NaN reaches every embedding of that row's set, and no other.
void test_broken_upstream(const Level& level) {
  for (const int64_t columns : {0, 150}) {
    for (const double skip_below : {0.0, 0.5}) {
      Case asked = base_case(Scalar::float32, columns, true);
      asked.skip_below = skip_below;
      asked.upstream = Upstream::positives_only;
      Inputs inputs = make_inputs(asked);
      inputs.grad_lse_pos.set(50, std::nan(""));
      const Reference expected = reference(inputs);
      const int64_t broken = count_nan(expected.rows.values);
      CHECK(broken > 0 && broken < inputs.rows.count * inputs.rows.dim);
      check_inputs(level, inputs, expected, "NaN from upstream");
    }
  }
}

// Shorter than the normalisation's epsilon, also where the gradient then exceeds the type's range.
void test_short_rows(const Level& level) {
  for (const Scalar scalar : ALL_SCALARS) {
    for (const int64_t columns : {0, 150}) {
      for (const bool normalize : {false, true}) {
        for (const double value : {0.0, 1e-14}) {
          Inputs inputs = make_inputs(base_case(scalar, columns, normalize));
          for (int64_t d = 0; d < inputs.rows.dim; ++d) {
            inputs.rows.set(100, d, d % 2 == 0 ? value : -value);
            if (columns > 0) inputs.columns.set(0, d, value);
          }
          const Reference expected = reference(inputs);
          CHECK(count_nan(expected.rows.values) + count_nan(expected.columns.values) == 0);
          check_inputs(level, inputs, expected, "short row");
        }
      }
    }
  }
}

// Rows so deep that they are packed a part at a time, of which the broken value is in one.
void test_deep_rows(const Level& level) {
  for (const Scalar scalar : ALL_SCALARS) {
    for (const int64_t columns : {0, 4}) {
      for (const bool normalize : {false, true}) {
        Case asked = base_case(scalar, columns, normalize);
        asked.rows = 5;
        asked.dim = 9000;
        Inputs inputs = make_inputs(asked);
        for (int64_t d = 0; d < asked.dim; ++d) inputs.rows.set(3, d, 0);
        check_inputs(level, inputs, reference(inputs), "deep short row");
        Side& side = columns == 0 ? inputs.rows : inputs.columns;
        side.set(2, 8900, std::nan(""));
        const Reference expected = reference(inputs);
        CHECK(count_nan(expected.lse_pos) + count_nan(expected.lse_neg) > 0);
        check_inputs(level, inputs, expected, "deep broken row");
      }
    }
  }
}

}  // namespace
}  // namespace circle_kernels

int main(int count, char** arguments) {
  using namespace circle_kernels;
  const Level* level = level_from_arguments(count, arguments);
  if (level == nullptr) return 77;
  test_broken_column(*level);
  test_broken_row(*level);
  test_other_pairs(*level);
  test_empty_sets(*level);
  test_broken_upstream(*level);
  test_short_rows(*level);
  test_deep_rows(*level);
  std::printf("%s: largest error %.2f of what may be\n", level->name, worst);
  return summary();
}
