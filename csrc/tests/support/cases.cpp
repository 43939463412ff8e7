#include "tests/support/cases.h"

#include <cmath>
#include <random>

namespace circle_kernels {

namespace {

// The standard's distributions differ between libraries; its engines do not.
class Numbers {
 public:
  explicit Numbers(uint64_t seed) : engine_(seed) {}

  uint64_t below(uint64_t bound) { return engine_() % bound; }
  double uniform() { return static_cast<double>(engine_() >> 11) * 0x1p-53; }
  // Nearly normal, mean 0, variance 1.
  double normal() {
    double sum = -6;
    for (int term = 0; term < 12; ++term) sum += uniform();
    return sum;
  }

 private:
  std::mt19937_64 engine_;
};

// Names of classes without order or pattern, negative ones among them.
int64_t name_of(int64_t class_index) {
  return static_cast<int64_t>(static_cast<uint64_t>(class_index) * 0x9e3779b97f4a7c15u);
}

// Columns' classes overlap the rows' without being the same, and come in another order.
int64_t class_of(const Case& asked, bool column, int64_t position, Numbers& numbers) {
  switch (asked.labels) {
    case Labels::few_classes:
      return static_cast<int64_t>(numbers.below(7)) + (column ? 2 : 0);
    case Labels::pairs:
      return static_cast<int64_t>(numbers.below((asked.rows + 1) / 2));
    case Labels::one_class:
      return 1;
    case Labels::class_weights:  // some rows have no column
      return column || asked.self_mode() ? position
                                         : static_cast<int64_t>(numbers.below(asked.columns + 2));
    default:
      return column ? asked.columns - 1 - position : position;
  }
}

Side make_side(const Case& asked, bool column, Numbers& numbers) {
  const int64_t count = column ? asked.columns : asked.rows, dim = asked.dim;
  int64_t row_stride = dim, dim_stride = 1, label_stride = 1;
  switch (asked.layout) {
    case Layout::contiguous:
      break;
    case Layout::transposed:
      row_stride = 1;
      dim_stride = count;
      break;
    case Layout::gaps:
      row_stride = 3 * dim + 5;
      dim_stride = 3;
      label_stride = 2;
      break;
    case Layout::same_row:
      row_stride = 0;
      break;
    case Layout::same_values:
      row_stride = 1;
      dim_stride = 0;
      break;
  }
  if (asked.labels == Labels::one_class) label_stride = 0;
  const auto extent = [&](int64_t stride) { return count > 0 ? (count - 1) * stride + 1 : 0; };
  const int64_t size = count > 0 ? extent(row_stride) + (dim - 1) * dim_stride : 0;
  Side side{count,
            dim,
            row_stride,
            dim_stride,
            label_stride,
            Buffer(asked.scalar, size),
            std::vector<int64_t>(extent(label_stride), 0)};

  for (int64_t row = 0; row < count; ++row) {
    const int64_t class_index = class_of(asked, column, row, numbers);
    side.label_memory[row * label_stride] =
        asked.labels == Labels::class_weights ? class_index : name_of(class_index);
    // Norms differ where they do not matter; where they do, similarities stay about as large.
    const double scale = asked.normalize ? std::exp2(4 * numbers.uniform() - 2)
                                         : 1 / std::sqrt(static_cast<double>(dim));
    for (int64_t d = 0; d < dim; ++d) {
      // Classes lie in directions of their own, so that positives are somewhat similar.
      const double direction = std::sin(static_cast<double>(1 + class_index % 50) * (1.0 + d));
      side.set(row, d, scale * (numbers.normal() + 0.7 * direction));
    }
  }
  return side;
}

const char* name_of(Scalar scalar) {
  const char* const names[] = {"float16", "bfloat16", "float32", "float64"};
  return names[static_cast<int>(scalar)];
}

}  // namespace

Formula circle_formula(double gamma, bool detach_weights) {
  constexpr double MARGIN = 0.4;
  return {FormulaKind::circle, gamma,  gamma,         1 + MARGIN, -MARGIN,
          1 - MARGIN,          MARGIN, detach_weights};
}

Formula unified_formula(double gamma) {
  return {FormulaKind::unified, gamma, gamma, 0, 0, 0, -0.35, true};
}

Formula two_scales(Formula formula, double gamma_pos, double margin_pos) {
  formula.gamma_pos = gamma_pos;
  formula.margin_pos = margin_pos;
  return formula;
}

std::string describe(const Case& asked) {
  const char* const labels[] = {"few classes", "pairs", "one class", "all distinct",
                                "class weights"};
  const char* const layouts[] = {"contiguous", "transposed", "gaps", "same row", "same values"};
  const char* const upstreams[] = {"everywhere", "in few rows", "for positives only"};
  const Formula& formula = asked.formula;
  const bool circle = formula.kind == FormulaKind::circle;
  return std::string(name_of(asked.scalar)) + ", " + std::to_string(asked.rows) + " rows, " +
         (asked.self_mode() ? "self mode" : std::to_string(asked.columns) + " columns") + ", dim " +
         std::to_string(asked.dim) + ", " + labels[static_cast<int>(asked.labels)] + ", " +
         layouts[static_cast<int>(asked.layout)] + ", " + (circle ? "circle" : "unified") +
         (circle && !formula.detach_weights ? " not detached" : "") + ", gammas " +
         std::to_string(formula.gamma_pos) + " and " + std::to_string(formula.gamma_neg) +
         (asked.normalize ? ", normalized" : ", as given") + ", skip below " +
         std::to_string(asked.skip_below) + ", gradients " +
         upstreams[static_cast<int>(asked.upstream)] + ", times " +
         std::to_string(asked.upstream_scale) + (asked.both_sides ? ", both sides" : "") +
         (asked.own_copies ? ", own copies" : "") + (asked.by_functions ? ", by functions" : "");
}

Embeddings Side::view() const {
  return {memory.data(), count, dim, row_stride, dim_stride, label_memory.data(), label_stride};
}

Problem Inputs::problem(int64_t kept_tiles, int threads) const {
  Problem problem{};
  problem.scalar = asked.scalar;
  problem.rows = rows.view();
  problem.columns = other_side().view();
  problem.self_mode = asked.self_mode();
  problem.formula = functions != nullptr ? functions->formula() : asked.formula;
  problem.normalize = asked.normalize;
  problem.skip_below = asked.skip_below;
  problem.kept_tiles = kept_tiles;
  problem.threads = threads;
  problem.both_sides = asked.both_sides;
  problem.own_columns = own_columns.empty() ? nullptr : own_columns.data();
  problem.own_stride = 1;
  return problem;
}

bool Inputs::is_own(int64_t row, int64_t column) const {
  if (asked.self_mode()) return row == column;
  return !own_columns.empty() && own_columns[row] == column;
}

int64_t Inputs::tiles() const {
  return tiles_of(rows.count, other_side().count, asked.self_mode());
}

Inputs make_inputs(const Case& asked) {
  Numbers numbers(static_cast<uint64_t>(asked.rows * 1000003 + asked.columns * 1009 + asked.dim));
  Side rows = make_side(asked, false, numbers), columns = make_side(asked, true, numbers);
  const Scalar computed = result_scalar(asked.scalar);
  const int64_t anchors = asked.rows + (asked.both_sides ? asked.columns : 0);
  Inputs inputs{asked,
                std::move(rows),
                std::move(columns),
                Buffer(computed, anchors),
                Buffer(computed, anchors),
                {},
                nullptr};
  const double mean = asked.upstream_scale / static_cast<double>(asked.rows);
  for (int64_t row = 0; row < anchors; ++row) {
    const bool active = asked.upstream != Upstream::few_rows || row % 41 == 0;
    const bool negative_too = asked.upstream != Upstream::positives_only;
    inputs.grad_lse_pos.set(row, active ? mean * numbers.normal() : 0.0);
    inputs.grad_lse_neg.set(row, active && negative_too ? mean * numbers.normal() : 0.0);
  }
  for (int64_t row = 0; row < asked.rows && asked.own_copies; ++row) {
    const bool any = numbers.below(3) > 0;
    inputs.own_columns.push_back(any ? static_cast<int64_t>(numbers.below(asked.columns)) : -1);
  }
  if (asked.by_functions) inputs.functions = by_functions(asked.formula);
  return inputs;
}

}  // namespace circle_kernels
