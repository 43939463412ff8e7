// skip_below: of each row's weight no more than that share is missing from the gradient, since only
// pairs are left out that have no more than their equal part of it.
//
// Embeddings are (1, a), taken as they are, and every slope is gamma or -gamma; so the first entry
// of a gradient is gamma times the weights that are in it.
#include <algorithm>
#include <cmath>

#include "tests/support/check.h"
#include "tests/support/runs.h"

namespace circle_kernels {
namespace {

constexpr double SKIP_BELOW = 0.5;

enum class Spread {
  random,     // classes mixed in tiles, weights from negligible to nearly all
  by_panels,  // a class a panel, some with large `a`: tiles that only their columns' rows need
};

double second_value(Spread spread, int64_t position, int64_t panel) {
  const double wave = std::sin(static_cast<double>(position) * 0.7);
  if (spread == Spread::random) return wave;
  return (panel < 2 ? 3 : 0.2) + 0.05 * wave;
}

Inputs make_spread(Case asked, Spread spread) {
  Inputs inputs = make_inputs(asked);
  for (Side* side : {&inputs.rows, &inputs.columns}) {
    for (int64_t row = 0; row < side->count; ++row) {
      side->set(row, 0, 1);
      side->set(row, 1, second_value(spread, row, row / PANEL));
      if (spread == Spread::by_panels) side->label_memory[row] = row / PANEL;
    }
  }
  // Signs that make every pair's part of the first entry positive.
  for (int64_t anchor = 0; anchor < inputs.anchors(); ++anchor) {
    inputs.grad_lse_pos.set(anchor, -1);
    inputs.grad_lse_neg.set(anchor, 1);
  }
  return inputs;
}

// Roundings of weights, relative; float's, with logits of up to a thousand.
constexpr double TOLERANCE = 2e-3;

// Of each embedding's gradient over gamma, the weights of pairs that may be left out.
struct Losses {
  std::vector<double> rows, columns;  // in self mode all are the rows'
};

Losses permitted_losses(const Inputs& inputs, const Reference& expected) {
  const Side& other = inputs.other_side();
  Losses losses{std::vector<double>(inputs.rows.count), std::vector<double>(other.count)};
  std::vector<double>& columns = inputs.asked.self_mode() ? losses.rows : losses.columns;
  const Formula& formula = inputs.asked.formula;
  const bool both_sides = inputs.asked.both_sides;
  const int64_t most = both_sides ? std::max(inputs.rows.count, other.count) : other.count;
  const double equal_part = SKIP_BELOW / static_cast<double>(most) * (1 + TOLERANCE);
  for (int64_t i = 0; i < inputs.rows.count; ++i) {
    for (int64_t j = 0; j < other.count; ++j) {
      if (inputs.asked.self_mode() && i == j) continue;
      const double similarity = 1 + inputs.rows.value(i, 1) * other.value(j, 1);
      const bool positive = inputs.rows.label(i) == other.label(j);
      const double logit = positive ? -formula.gamma_pos * similarity
                                    : formula.gamma_neg * (similarity - formula.margin_neg);
      const std::vector<double>& lse = positive ? expected.lse_pos : expected.lse_neg;
      const double share = std::exp(logit - lse[i]);
      const double of_column = both_sides ? std::exp(logit - lse[inputs.rows.count + j]) : 0;
      if (share > equal_part || of_column > equal_part) continue;
      losses.rows[i] += share + of_column;
      columns[j] += share + of_column;
    }
  }
  return losses;
}

// Checks one side; returns the largest share of its weight that an embedding lost.
double check_losses(const Case& asked, const ReferenceGradient& expected, const Buffer& values,
                    const std::vector<double>& permitted) {
  double largest = 0;
  for (int64_t index = 0; index < values.count(); index += 2) {
    const double weight = expected.values[index] / asked.formula.gamma_neg;
    const double loss = weight - values.at(index) / asked.formula.gamma_neg;
    const double rounding = TOLERANCE * weight + 1e-9;
    CHECK_WITH(loss >= -rounding && loss <= permitted[index / 2] + rounding,
               "%g of %g, %g permitted; %s", loss, weight, permitted[index / 2],
               describe(asked).c_str());
    largest = std::max(largest, loss / weight);
  }
  return largest;
}

void test_losses(const Level& level, Spread spread, bool both_sides) {
  double largest = 0;
  for (const Scalar scalar : {Scalar::float32, Scalar::float64}) {
    for (const int64_t columns : {int64_t{0}, 3 * PANEL}) {
      if (both_sides && columns == 0) continue;
      for (const Labels labels : {Labels::few_classes, Labels::pairs}) {
        for (const double gamma : {3.0, 20.0, 80.0}) {
          Case asked;
          asked.scalar = scalar;
          asked.rows = 4 * PANEL;
          asked.columns = columns;
          asked.dim = 2;
          asked.labels = labels;
          asked.normalize = false;
          asked.formula = unified_formula(gamma);
          asked.skip_below = SKIP_BELOW;
          asked.both_sides = both_sides;
          asked.by_functions = gamma == 20;
          const Inputs inputs = make_spread(asked, spread);
          const Reference expected = reference(inputs);
          const Results results = run_both(level, inputs, {inputs.tiles() / 2, 2});

          double worst = 0;
          const std::string wrong = difference(inputs, expected, results, false, worst);
          CHECK_WITH(wrong.empty(), "%s; %s", wrong.c_str(), describe(asked).c_str());

          const Losses permitted = permitted_losses(inputs, expected);
          for (const double loss :
               {check_losses(asked, expected.rows, results.grad_rows, permitted.rows),
                check_losses(asked, expected.columns, results.grad_columns, permitted.columns)}) {
            largest = std::max(largest, loss);
          }
        }
      }
    }
  }
  std::printf("%s: at most %.4f of an embedding's weight left out\n", level.name, largest);
  // Or this test shows nothing. Where random pairs count for both, each row has one that matters.
  CHECK(largest > 2 * TOLERANCE || (both_sides && spread == Spread::random));
}

}  // namespace
}  // namespace circle_kernels

int main(int count, char** arguments) {
  using namespace circle_kernels;
  const Level* level = level_from_arguments(count, arguments);
  if (level == nullptr) return 77;
  for (const bool both_sides : {false, true}) {
    test_losses(*level, Spread::random, both_sides);
    test_losses(*level, Spread::by_panels, both_sides);
  }
  return summary();
}
