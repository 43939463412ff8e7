// A batch in blocks, as processes that share it compute it: rows of one band against those of each
// band, with sums over all of them. The gradients of blocks add up to those of the whole batch.
#include <cmath>
#include <limits>
#include <stdexcept>

#include "tests/support/check.h"
#include "tests/support/runs.h"

namespace circle_kernels {
namespace {

double worst = 0;  // share of the allowed error

struct Band {
  int64_t first, last;
  int64_t count() const { return last - first; }
};

enum class From {
  forward,  // what the forward pass of a block left, upstream gradients scaled to its share
  sums,     // what is saved of sums over all blocks
};

// Both log-sum-exps of the whole batch, and both upstream gradients.
struct Totals {
  Scalar scalar;
  std::vector<double> lse[2];
  const Buffer* gradient[2];

  Buffer of(const Band& band) const {  // as BackwardInput::column_statistics
    Buffer all(scalar, 4 * band.count());
    for (int64_t kind = 0; kind < 2; ++kind) {
      for (int64_t row = 0; row < band.count(); ++row) {
        all.set(kind * band.count() + row, lse[kind][band.first + row]);
        all.set((2 + kind) * band.count() + row, gradient[kind]->at(band.first + row));
      }
    }
    return all;
  }
};

Embeddings part_of(const Inputs& inputs, const Band& band) {
  Embeddings part = inputs.rows.view();
  const Side& side = inputs.rows;
  part.values = static_cast<const char*>(part.values) +
                side.memory.bytes() / side.memory.count() * band.first * side.row_stride;
  part.labels += band.first * side.label_stride;
  part.count = band.count();
  return part;
}

struct Block {
  Problem problem;
  Buffer lse[2], saved;
};

Block forward_of(const Level& level, const Inputs& inputs, const Band& rows, const Band& columns,
                 const RunOptions& options) {
  Problem problem = inputs.problem(0, options.threads);
  problem.rows = part_of(inputs, rows);
  problem.columns = part_of(inputs, columns);
  problem.self_mode = rows.first == columns.first;
  if (options.kept_tiles > 0) {
    problem.kept_tiles = tiles_of(rows.count(), columns.count(), problem.self_mode);
  }
  const Scalar computed = result_scalar(inputs.asked.scalar);
  Block block{problem,
              {Buffer(computed, rows.count()), Buffer(computed, rows.count())},
              Buffer(computed, SavedLayout(problem).size())};
  run_forward(level, problem,
              {block.lse[0].data(), block.lse[1].data(), block.saved.data(), block.saved.bytes()});
  return block;
}

// Adds a block's gradient to that of its band of the batch.
void add_gradient(const Level& level, Block& block, const Band& rows, const Band& columns,
                  const Totals& totals, From from, std::vector<double>& sums) {
  const Scalar computed = totals.scalar;
  const Buffer of_rows = totals.of(rows), of_columns = totals.of(columns);
  const int64_t count = rows.count(), dim = block.problem.rows.dim;
  Buffer lse[2] = {Buffer(computed, count), Buffer(computed, count)},
         gradient[2] = {lse[0], lse[1]};
  for (int64_t kind = 0; kind < 2; ++kind) {
    for (int64_t row = 0; row < count; ++row) {
      const double total = of_rows.at(kind * count + row), part = block.lse[kind].at(row);
      const double share = from == From::sums ? 1 : std::isinf(part) ? 0 : std::exp(part - total);
      lse[kind].set(row, total);
      gradient[kind].set(row, share * of_rows.at((2 + kind) * count + row));
    }
  }
  if (from == From::sums) {
    Problem without_tiles = block.problem;
    without_tiles.kept_tiles = 0;
    block.saved = Buffer(computed, SavedLayout(without_tiles).size());
    run_save(level, block.problem,
             {lse[0].data(), lse[1].data(), block.saved.data(), block.saved.bytes()});
  }
  Buffer result(block.problem.scalar, count * dim);
  run_backward(block.problem,
               {block.saved.data(), block.saved.bytes(), gradient[0].data(), gradient[1].data(),
                block.problem.self_mode ? nullptr : of_columns.data()},
               {result.data(), nullptr});
  for (int64_t index = 0; index < result.count(); ++index) {
    sums[rows.first * dim + index] += result.at(index);
  }
}

void check_blocks(const Level& level, const Inputs& inputs, const std::vector<Band>& bands,
                  const RunOptions& options) {
  const Case& asked = inputs.asked;
  const Reference expected = reference(inputs);
  const Scalar computed = result_scalar(asked.scalar);
  const Totals totals{
      computed, {expected.lse_pos, expected.lse_neg}, {&inputs.grad_lse_pos, &inputs.grad_lse_neg}};
  for (const From from : {From::forward, From::sums}) {
    std::vector<double> sums(asked.rows * asked.dim);
    for (const Band& rows : bands) {
      for (const Band& columns : bands) {
        Block block = forward_of(level, inputs, rows, columns, options);
        add_gradient(level, block, rows, columns, totals, from, sums);
      }
    }
    Results results{Buffer(computed, asked.rows), Buffer(computed, asked.rows), Buffer(computed, 0),
                    Buffer(asked.scalar, asked.rows * asked.dim), Buffer(asked.scalar, 0)};
    for (int64_t row = 0; row < asked.rows; ++row) {
      results.lse_pos.set(row, expected.lse_pos[row]);
      results.lse_neg.set(row, expected.lse_neg[row]);
    }
    for (int64_t index = 0; index < results.grad_rows.count(); ++index) {
      results.grad_rows.set(index, sums[index]);
    }
    const std::string wrong = difference(inputs, expected, results, true, worst);
    CHECK_WITH(wrong.empty(), "%s, from %s: %s; %s; %s kept, %d threads", level.name,
               from == From::forward ? "the forward pass" : "sums", wrong.c_str(),
               describe(asked).c_str(), options.kept_tiles > 0 ? "tiles" : "nothing",
               options.threads);
  }
}

const Formula ALL_FORMULAS[] = {circle_formula(80, true), circle_formula(80, false),
                                circle_formula(600, false), unified_formula(80),
                                unified_formula(3)};

// Bands of one row, of a panel and a row, and of no whole panel.
void test_formulas_and_labels(const Level& level) {
  const std::vector<Band> bands{{0, 1}, {1, 98}, {98, 211}};
  for (const Scalar scalar : {Scalar::float32, Scalar::float64}) {
    for (const Formula& formula : ALL_FORMULAS) {
      for (const Labels labels : {Labels::few_classes, Labels::pairs, Labels::all_distinct}) {
        for (const Upstream upstream : {Upstream::everywhere, Upstream::few_rows}) {
          for (const int64_t kept : {0, 1}) {
            Case asked;
            asked.scalar = scalar;
            asked.rows = 211;
            asked.dim = 10;
            asked.labels = labels;
            asked.formula = formula;
            asked.normalize = kept > 0;
            asked.upstream = upstream;
            asked.skip_below = upstream == Upstream::everywhere && kept > 0 ? 0x1p-60 : 0;
            check_blocks(level, make_inputs(asked), bands, {kept, 2});
          }
        }
      }
    }
  }
}

// Enough work for several threads, and for products of bfloat16 where the level has them.
void test_threads(const Level& level) {
  for (const Scalar scalar : {Scalar::bfloat16, Scalar::float32}) {
    for (const int64_t kept : {0, 1}) {
      Case asked;
      asked.scalar = scalar;
      asked.rows = 400;
      asked.dim = 40;
      asked.labels = Labels::pairs;
      asked.formula = circle_formula(20, true);
      check_blocks(level, make_inputs(asked), {{0, 190}, {190, 400}}, {kept, 3});
    }
  }
}

// Rows without gradients among columns with huge or tiny ones: it is these that units come from.
void test_upstream_sizes(const Level& level) {
  for (const double upstream_scale : {0x1p-90, 0x1p110}) {
    for (const Formula& formula : {circle_formula(600, true), unified_formula(80)}) {
      for (const int64_t kept : {0, 1}) {
        Case asked;
        asked.rows = 130;
        asked.formula = formula;
        asked.upstream = Upstream::few_rows;
        asked.upstream_scale = upstream_scale;
        check_blocks(level, make_inputs(asked), {{0, 30}, {30, 40}, {40, 130}}, {kept, 1});
      }
    }
  }
}

void test_deep_rows(const Level& level) {
  for (const int64_t kept : {0, 1}) {
    Case asked;
    asked.rows = 70;
    asked.dim = 9001;
    asked.labels = Labels::pairs;
    asked.formula = circle_formula(20, true);
    check_blocks(level, make_inputs(asked), {{0, 30}, {30, 70}}, {kept, 2});
  }
}

// Bands are classes, of embeddings (1, 0) and (b, 1) as they are: each pair of two bands has the
// similarity b, and where b is 0, a logit that lies deeper than the three that the forward pass
// looks at. It keeps weights all the same, for rows that have other columns, too.
void test_columns_far_below_their_tile(const Level& level) {
  for (const Scalar scalar : {Scalar::float32, Scalar::float64}) {
    Case asked;
    asked.scalar = scalar;
    asked.rows = 2 * PANEL;
    asked.dim = 2;
    asked.normalize = false;
    asked.formula = circle_formula(scalar == Scalar::float32 ? 144 : 1300, true);
    Inputs inputs = make_inputs(asked);
    for (int64_t row = 0; row < asked.rows; ++row) {
      const double values[] = {0, -0.3, 0.9};
      const bool second = row >= PANEL;
      inputs.rows.set(row, 0, second ? values[row % 3] : 1);
      inputs.rows.set(row, 1, second);
      inputs.rows.label_memory[row] = second;
    }
    check_blocks(level, inputs, {{0, PANEL}, {PANEL, 2 * PANEL}}, {1, 1});
  }
}

// As in self mode: whoever has a gradient through a pair with such a column has NaN.
void test_nan_reaches_rows(const Level& level) {
  Case asked;
  asked.rows = 2 * PANEL;
  asked.formula = circle_formula(20, true);
  const Inputs inputs = make_inputs(asked);
  const Reference expected = reference(inputs);
  Totals totals{Scalar::float32,
                {expected.lse_pos, expected.lse_neg},
                {&inputs.grad_lse_pos, &inputs.grad_lse_neg}};
  totals.lse[1][PANEL + 3] = std::numeric_limits<double>::quiet_NaN();
  const Band rows{0, PANEL}, columns{PANEL, 2 * PANEL};
  for (const From from : {From::forward, From::sums}) {
    Block block = forward_of(level, inputs, rows, columns, {1, 1});
    std::vector<double> sums(asked.rows * asked.dim);
    add_gradient(level, block, rows, columns, totals, from, sums);
    for (int64_t row = 0; row < PANEL; ++row) {
      const bool positive = inputs.rows.label(row) == inputs.rows.label(PANEL + 3);
      CHECK(std::isnan(sums[row * asked.dim]) == !positive);
    }
  }
}

void test_saved_sums_of_other_problems(const Level& level) {
  Case asked;
  asked.rows = 2 * PANEL;
  asked.formula = circle_formula(20, true);
  const Inputs inputs = make_inputs(asked);
  const Block own = forward_of(level, inputs, {0, PANEL}, {0, PANEL}, {0, 1});
  const Block other = forward_of(level, inputs, {0, PANEL}, {PANEL, 2 * PANEL}, {0, 1});
  Buffer saved(Scalar::float32, SavedLayout(own.problem).size());
  const auto save = [&](int64_t bytes) {
    run_save(level, own.problem, {own.lse[0].data(), own.lse[1].data(), saved.data(), bytes});
  };
  save(saved.bytes());
  Buffer gradient(Scalar::float32, PANEL * asked.dim);
  const auto backward = [&](const Problem& problem) {
    run_backward(problem, {saved.data(), saved.bytes(), own.lse[0].data(), own.lse[1].data()},
                 {gradient.data(), nullptr});
  };
  backward(own.problem);
  bool refused = false;
  try {
    backward(other.problem);
  } catch (const std::runtime_error&) {
    refused = true;
  }
  CHECK(refused);
  refused = false;
  try {
    save(saved.bytes() - 4);
  } catch (const std::invalid_argument&) {
    refused = true;
  }
  CHECK(refused);
}

}  // namespace
}  // namespace circle_kernels

int main(int count, char** arguments) {
  using namespace circle_kernels;
  const Level* level = level_from_arguments(count, arguments);
  if (level == nullptr) return 77;
  test_formulas_and_labels(*level);
  test_threads(*level);
  test_upstream_sizes(*level);
  test_deep_rows(*level);
  test_columns_far_below_their_tile(*level);
  test_nan_reaches_rows(*level);
  test_saved_sums_of_other_problems(*level);
  std::printf("%s: largest error %.2f of what may be\n", level->name, worst);
  return summary();
}
