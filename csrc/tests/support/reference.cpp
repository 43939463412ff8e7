#include "tests/support/reference.h"

#include <cmath>
#include <limits>

namespace circle_kernels {

namespace {

constexpr double NORM_EPSILON = 1e-12;
constexpr double INFINITE = std::numeric_limits<double>::infinity();

enum class Kind { none, positive, negative };

struct Pair {
  double logit, slope;
  double logit_error;  // in arithmetic with a rounding unit of 1
  double slope_scale;  // of the sum that the slope is
};

// `size` is |x| |y|, which the similarity's rounding errors are relative to.
Pair evaluate(const Formula& formula, Kind kind, double similarity, double size) {
  const bool positive = kind == Kind::positive;
  const double gamma = positive ? formula.gamma_pos : formula.gamma_neg;
  const double sign = positive ? -1 : 1;
  if (formula.kind == FormulaKind::unified) {
    const double margin = positive ? -formula.margin_pos : -formula.margin_neg;
    return {sign * gamma * (similarity + margin), sign * gamma, gamma * (size + std::abs(margin)),
            gamma};
  }
  const double optimum = positive ? formula.optimum_pos : formula.optimum_neg;
  const double margin = positive ? formula.margin_pos : formula.margin_neg;
  const double distance = sign * (similarity - optimum);
  const double weight = distance < 0 ? 0 : distance;  // NaN stays NaN
  const double offset = similarity - margin;
  double slope = sign * weight;
  if (!formula.detach_weights && weight > 0) slope += offset;
  const double rounding = size + std::abs(optimum) + std::abs(margin);
  return {gamma * sign * weight * offset, gamma * slope,
          weight > 0 ? gamma * (weight + std::abs(offset)) * rounding : 0, gamma * rounding};
}

// Wider sums: those of equal terms would otherwise lose as much as the kernel's in double.
double dot(const double* a, const double* b, int64_t dim) {
  long double sum = 0;
  for (int64_t d = 0; d < dim; ++d) sum += static_cast<long double>(a[d]) * b[d];
  return static_cast<double>(sum);
}

// Embeddings as the products see them.
struct Vectors {
  int64_t count, dim;
  std::vector<double> values;  // (count, dim), over their norms where that is asked for
  std::vector<double> norms;   // of `values`
  std::vector<double> divisors;
  std::vector<bool> constant_divisor;

  const double* row(int64_t index) const { return values.data() + index * dim; }
};

Vectors make_vectors(const Side& side, bool normalize) {
  Vectors vectors{side.count, side.dim, {}, {}, {}, {}};
  for (int64_t row = 0; row < side.count; ++row) {
    std::vector<double> given(side.dim);
    for (int64_t d = 0; d < side.dim; ++d) given[d] = side.value(row, d);
    const double norm = std::sqrt(dot(given.data(), given.data(), side.dim));
    const bool small = !normalize || norm <= NORM_EPSILON;
    double divisor = !normalize ? 1 : small ? NORM_EPSILON : norm;
    if (!(norm < INFINITE)) divisor = std::nan("");
    for (const double value : given) vectors.values.push_back(value / divisor);
    vectors.norms.push_back(norm / divisor);
    vectors.divisors.push_back(divisor);
    vectors.constant_divisor.push_back(small);
  }
  return vectors;
}

// One row's log-sum-exp over one kind of pair.
double log_sum_exp(const std::vector<Pair>& pairs, const std::vector<Kind>& kinds, Kind kind) {
  double highest = -INFINITE, sum = 0;
  for (std::size_t j = 0; j < pairs.size(); ++j) {
    if (kinds[j] == kind && pairs[j].logit > highest) highest = pairs[j].logit;
  }
  for (std::size_t j = 0; j < pairs.size(); ++j) {
    if (kinds[j] != kind) continue;
    sum += pairs[j].logit == pairs[j].logit ? std::exp(pairs[j].logit - highest) : std::nan("");
  }
  return sum == 0 ? -INFINITE : sum != sum ? sum : highest + std::log(sum);
}

// Adds factor * other. `scale` is the size of what the factor was computed from.
void add_scaled(ReferenceGradient& gradient, int64_t index, double factor, double weight,
                double scale, const Vectors& other, int64_t other_index) {
  double* to = gradient.values.data() + index * other.dim;
  const double* from = other.row(other_index);
  for (int64_t d = 0; d < other.dim; ++d) to[d] += factor * from[d];
  gradient.scales[index] += weight * scale * other.norms[other_index];
  gradient.ranges[index] += scale * other.norms[other_index];
}

// From the gradient with respect to normalised embeddings to that of embeddings as given.
void through_normalization(const Vectors& vectors, Scalar scalar, ReferenceGradient& gradient) {
  const double largest = scalar == Scalar::float16    ? 65504
                         : scalar == Scalar::bfloat16 ? 0x1.fep127
                         : scalar == Scalar::float32  ? std::numeric_limits<float>::max()
                                                      : std::numeric_limits<double>::max();
  for (int64_t row = 0; row < vectors.count; ++row) {
    double* values = gradient.values.data() + row * vectors.dim;
    const double divisor = vectors.divisors[row];
    const bool constant = vectors.constant_divisor[row];
    const double along = constant ? 0 : dot(vectors.row(row), values, vectors.dim);
    for (int64_t d = 0; d < vectors.dim; ++d) {
      double value = (values[d] - vectors.row(row)[d] * along) / divisor;
      // Finite also in a narrow type: the gradient of a zero vector is huge.
      if (constant && std::abs(value) > largest) value = std::copysign(largest, value);
      values[d] = value;
    }
    gradient.scales[row] /= divisor;
    gradient.ranges[row] /= divisor;
  }
}

}  // namespace

Reference reference(const Inputs& inputs) {
  const Case& asked = inputs.asked;
  const Side& other = inputs.other_side();
  const Vectors rows = make_vectors(inputs.rows, asked.normalize);
  const Vectors own_columns = make_vectors(inputs.columns, asked.normalize);
  const Vectors& columns = asked.self_mode() ? rows : own_columns;

  Reference result{};
  const auto clear = [](const Vectors& vectors, ReferenceGradient& gradient) {
    gradient.values.assign(vectors.values.size(), 0);
    gradient.scales.assign(vectors.count, 0);
    gradient.ranges.assign(vectors.count, 0);
  };
  clear(rows, result.rows);
  clear(own_columns, result.columns);
  ReferenceGradient& column_gradient = asked.self_mode() ? result.rows : result.columns;

  // The sums of all of one side over those of the other, and what these give to both gradients.
  const auto walk = [&](const Vectors& anchors, const Vectors& others, bool transposed,
                        ReferenceGradient& anchor_gradient, ReferenceGradient& other_gradient) {
    std::vector<Pair> pairs(others.count);
    std::vector<Kind> kinds(others.count);
    for (int64_t i = 0; i < anchors.count; ++i) {
      for (int64_t j = 0; j < others.count; ++j) {
        const int64_t row = transposed ? j : i, column = transposed ? i : j;
        const bool same = inputs.rows.label(row) == other.label(column);
        kinds[j] = inputs.is_own(row, column) ? Kind::none : same ? Kind::positive : Kind::negative;
        if (kinds[j] == Kind::none) continue;
        const double similarity = dot(anchors.row(i), others.row(j), anchors.dim);
        pairs[j] =
            evaluate(asked.formula, kinds[j], similarity, anchors.norms[i] * others.norms[j]);
        if (pairs[j].logit_error > result.logit_error) result.logit_error = pairs[j].logit_error;
      }
      const auto place = static_cast<int64_t>(result.lse_pos.size());
      result.lse_pos.push_back(log_sum_exp(pairs, kinds, Kind::positive));
      result.lse_neg.push_back(log_sum_exp(pairs, kinds, Kind::negative));

      for (int64_t j = 0; j < others.count; ++j) {
        if (kinds[j] == Kind::none) continue;
        const bool positive = kinds[j] == Kind::positive;
        const double upstream = (positive ? inputs.grad_lse_pos : inputs.grad_lse_neg).at(place);
        if (upstream == 0) continue;
        const double lse = positive ? result.lse_pos[place] : result.lse_neg[place];
        const double weight = std::exp(pairs[j].logit - lse);
        const double gradient = weight * upstream * pairs[j].slope;
        const double scale = std::abs(upstream) * pairs[j].slope_scale;
        result.scale_gradients[positive ? 0 : 1] += weight * upstream * pairs[j].logit;
        result.scale_sizes[positive ? 0 : 1] +=
            weight * std::abs(upstream) * (1 + std::abs(pairs[j].logit));
        add_scaled(anchor_gradient, i, gradient, weight, scale, others, j);
        add_scaled(other_gradient, j, gradient, weight, scale, anchors, i);
      }
    }
  };
  walk(rows, columns, false, result.rows, column_gradient);
  if (asked.both_sides) walk(columns, rows, true, column_gradient, result.rows);
  through_normalization(rows, asked.scalar, result.rows);
  through_normalization(own_columns, asked.scalar, result.columns);
  return result;
}

}  // namespace circle_kernels
