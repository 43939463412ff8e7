#include "tests/support/runs.h"

#include <cmath>
#include <cstdio>

namespace circle_kernels {

namespace {

Results empty_results(const Inputs& inputs, const Problem& problem, const RunOptions& options) {
  const Scalar computed = result_scalar(inputs.asked.scalar);
  const int64_t row_values = inputs.rows.count * inputs.rows.dim;
  const int64_t column_values = inputs.columns.count * inputs.columns.dim;
  return {Buffer(computed, inputs.anchors()), Buffer(computed, inputs.anchors()),
          Buffer(computed, SavedLayout(problem).size()),
          Buffer(inputs.asked.scalar, options.grad_rows ? row_values : 0),
          Buffer(inputs.asked.scalar, options.grad_columns ? column_values : 0)};
}

// Compares numbers one by one, each with an error of its own that it may have.
class Comparison {
 public:
  // Rounding to a narrow type takes all that is allowed; that is not worth knowing.
  Comparison(Scalar scalar, double& worst)
      : counts_(scalar == result_scalar(scalar)), worst_(worst) {}

  void add(const char* name, int64_t index, double expected, double value, double allowed) {
    if (!first_.empty()) return;
    const bool both_nan = expected != expected && value != value;
    if (both_nan || expected == value) return;
    const double share = std::abs(value - expected) / allowed;
    if (share <= 1) {
      if (counts_ && share > worst_) worst_ = share;
      return;
    }
    char text[160];
    std::snprintf(text, sizeof text, "%s[%lld] is %.17g instead of %.17g, %.3g times what may be",
                  name, static_cast<long long>(index), value, expected, share);
    first_ = text;
  }
  const std::string& first() const { return first_; }

 private:
  bool counts_;
  double& worst_;
  std::string first_;
};

double logit_error_of(const Inputs& inputs, const Reference& expected) {
  const Case& asked = inputs.asked;
  // A product over d is a sum whose roundings add up like a random walk, or all in one direction
  // where its terms are equal.
  const auto terms = static_cast<double>(asked.dim);
  const double growth = asked.layout == Layout::same_values ? terms : std::sqrt(terms);
  return rounding_unit(result_scalar(asked.scalar)) * expected.logit_error * (2 + growth / 4);
}

}  // namespace

Results run_forward_only(const Level& level, const Inputs& inputs, const RunOptions& options) {
  const Problem problem = inputs.problem(options.kept_tiles, options.threads);
  Results results = empty_results(inputs, problem, options);
  run_forward(level, problem, {results.lse_pos.data(), results.lse_neg.data(), nullptr, 0});
  return results;
}

void run_backward_of(const Problem& problem, const Inputs& inputs, const RunOptions& options,
                     Results& results) {
  const bool columns = options.grad_columns && !problem.self_mode;
  run_backward(problem,
               {results.saved.data(), results.saved.bytes(), inputs.grad_lse_pos.data(),
                inputs.grad_lse_neg.data()},
               {options.grad_rows ? results.grad_rows.data() : nullptr,
                columns ? results.grad_columns.data() : nullptr});
}

Buffer scale_gradients_of(const Problem& problem, const Inputs& inputs, const Results& results) {
  Buffer gradients(result_scalar(inputs.asked.scalar), 2);
  run_scale_gradients(problem,
                      {results.saved.data(), results.saved.bytes(), inputs.grad_lse_pos.data(),
                       inputs.grad_lse_neg.data()},
                      gradients.data());
  return gradients;
}

Results run_both(const Level& level, const Inputs& inputs, const RunOptions& options) {
  const Problem problem = inputs.problem(options.kept_tiles, options.threads);
  Results results = empty_results(inputs, problem, options);
  run_forward(level, problem,
              {results.lse_pos.data(), results.lse_neg.data(), results.saved.data(),
               results.saved.bytes()});
  run_backward_of(problem, inputs, options, results);
  return results;
}

std::string difference(const Inputs& inputs, const Reference& expected, const Results& results,
                       bool with_gradients, double& worst) {
  const Case& asked = inputs.asked;
  const double unit = rounding_unit(result_scalar(asked.scalar));
  const double output_unit = rounding_unit(asked.scalar);
  const double logit_error = logit_error_of(inputs, expected);
  // The end of the exponent's range, half of which serves one exponential and half a row's factor.
  const double smallest_weight = asked.scalar == Scalar::float64 ? 0x1p-510 : 0x1p-62;
  const double smallest_output = asked.scalar == Scalar::float16 ? 0x1p-25 : 0x1p-134;
  const double pairs = static_cast<double>(inputs.rows.count + inputs.other_side().count);

  Comparison comparison(asked.scalar, worst);
  const auto compare_lse = [&](const char* name, const std::vector<double>& wanted,
                               const Buffer& values) {
    for (int64_t row = 0; row < inputs.anchors(); ++row) {
      const double allowed = logit_error + unit * (16 + 4 * std::abs(wanted[row]));
      comparison.add(name, row, wanted[row], values.at(row), allowed);
    }
  };
  compare_lse("lse_pos", expected.lse_pos, results.lse_pos);
  compare_lse("lse_neg", expected.lse_neg, results.lse_neg);

  const auto compare_gradient = [&](const char* name, const ReferenceGradient& wanted,
                                    const Buffer& values) {
    // bfloat16 products round each weight to bfloat16; its parts may add up in one direction.
    const double weight_error = asked.scalar == Scalar::bfloat16 ? output_unit : 0;
    const double relative = 2 * logit_error + unit * (16 + std::sqrt(pairs)) + weight_error;
    for (int64_t index = 0; index < values.count(); ++index) {
      const double value = wanted.values[index];
      const double allowed = relative * wanted.scales[index / asked.dim] +
                             smallest_weight * wanted.ranges[index / asked.dim] +
                             output_unit * std::abs(value) + smallest_output;
      comparison.add(name, index, value, values.at(index), allowed);
    }
  };
  if (with_gradients) {
    compare_gradient("grad_rows", expected.rows, results.grad_rows);
    compare_gradient("grad_columns", expected.columns, results.grad_columns);
  }
  return comparison.first();
}

std::string scale_difference(const Inputs& inputs, const Reference& expected,
                             const Buffer& gradients, double& worst) {
  const double unit = rounding_unit(result_scalar(inputs.asked.scalar));
  const double relative = 2 * logit_error_of(inputs, expected) + 32 * unit;
  Comparison comparison(inputs.asked.scalar, worst);
  for (int64_t kind = 0; kind < 2; ++kind) {
    const double value = expected.scale_gradients[kind];
    const double allowed =
        relative * expected.scale_sizes[kind] + unit * std::abs(value) + 0x1p-134;
    comparison.add("scale_gradients", kind, value, gradients.at(kind), allowed);
  }
  return comparison.first();
}

}  // namespace circle_kernels
