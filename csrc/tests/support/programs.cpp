#include "tests/support/programs.h"

namespace circle_kernels {

namespace {

using Instructions = std::vector<std::tuple<int32_t, std::vector<int32_t>, int32_t>>;

int32_t code(Operation operation) { return static_cast<int32_t>(operation); }

// Places: the similarity, the first constant's and so on.
constexpr int32_t SIMILARITY = 0, OPTIMUM = 1, MARGIN = 2, ZERO = 3, SIGN = 4, VALUE = 5;

// Of positives -[O - s]_+ (s - Delta), which is (s - O) (s - Delta) where s < O; of negatives the
// same where s > O. With `slope` the derivative.
ByteCode circle_program(const Formula& formula, bool positive, bool slope) {
  const std::vector<double> constants{positive ? formula.optimum_pos : formula.optimum_neg,
                                      positive ? formula.margin_pos : formula.margin_neg, 0, 0};
  Instructions instructions;
  const auto add = [&](Operation operation, std::vector<int32_t> operands, int32_t result) {
    instructions.emplace_back(code(operation), operands, result);
  };
  add(Operation::subtract, {SIMILARITY, OPTIMUM}, VALUE);
  if (positive) {
    add(Operation::minimum, {VALUE, ZERO}, VALUE + 1);
  } else {
    add(Operation::maximum, {ZERO, VALUE}, VALUE + 1);
  }
  if (!slope) {
    add(Operation::subtract, {SIMILARITY, MARGIN}, VALUE);
    add(Operation::multiply, {VALUE + 1, VALUE}, VALUE);
  } else if (formula.detach_weights) {
    add(Operation::copy, {VALUE + 1}, VALUE);
  } else {
    add(Operation::subtract, {SIMILARITY, MARGIN}, VALUE);
    add(Operation::add, {VALUE + 1, VALUE}, VALUE);
    add(Operation::not_equal, {VALUE + 1, ZERO}, VALUE + 2);
    add(Operation::where, {VALUE + 2, VALUE, ZERO}, VALUE);
  }
  return {constants, VALUE + 3, instructions};
}

ByteCode unified_program(const Formula& formula, bool positive, bool slope) {
  const std::vector<double> constants{0, positive ? formula.margin_pos : formula.margin_neg, 0,
                                      positive ? -1.0 : 1.0};
  Instructions instructions;
  if (slope) {
    instructions.emplace_back(code(Operation::copy), std::vector<int32_t>{SIGN}, VALUE);
  } else {
    instructions.emplace_back(code(Operation::subtract), std::vector<int32_t>{SIMILARITY, MARGIN},
                              VALUE);
    instructions.emplace_back(code(Operation::multiply), std::vector<int32_t>{VALUE, SIGN}, VALUE);
  }
  return {constants, VALUE + 1, instructions};
}

}  // namespace

std::shared_ptr<const OwnedFormula> by_functions(const Formula& formula) {
  const auto program = formula.kind == FormulaKind::circle ? circle_program : unified_program;
  Formula functions = formula;
  functions.kind = FormulaKind::functions;
  const std::vector<ByteCode> programs{program(formula, true, false),
                                       program(formula, false, false), program(formula, true, true),
                                       program(formula, false, true)};
  return std::make_shared<const OwnedFormula>(functions, programs);
}

}  // namespace circle_kernels
