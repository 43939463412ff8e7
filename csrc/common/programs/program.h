// Pair formulas that users wrote, as byte code: circle_kernels/pointwise/program.py has what
// instructions mean, circle_kernels/backends/cpu_arguments.py makes these of them.
#pragma once

#include <cstdint>

namespace circle_kernels {

// What an instruction computes. Comparisons and what combines them give masks.
enum class Operation : int32_t {
  copy,
  negative,
  absolute,
  sign,
  exp,
  expm1,
  log,
  log1p,
  sqrt,
  sin,
  cos,
  tanh,
  sigmoid,
  add,
  subtract,
  multiply,
  divide,
  maximum,
  minimum,
  greater,
  greater_equal,
  equal,
  not_equal,
  logical_and,
  logical_or,
  logical_not,
  where,
  number,
};

// Names in program.py, in the order above, and how many operands each has.
struct OperationName {
  const char* name;
  int operands;
};
constexpr OperationName OPERATION_NAMES[] = {
    {"copy", 1},          {"negative", 1}, {"absolute", 1},  {"sign", 1},    {"exp", 1},
    {"expm1", 1},         {"log", 1},      {"log1p", 1},     {"sqrt", 1},    {"sin", 1},
    {"cos", 1},           {"tanh", 1},     {"sigmoid", 1},   {"add", 2},     {"subtract", 2},
    {"multiply", 2},      {"divide", 2},   {"maximum", 2},   {"minimum", 2}, {"greater", 2},
    {"greater_equal", 2}, {"equal", 2},    {"not_equal", 2}, {"and", 2},     {"or", 2},
    {"not", 1},           {"where", 3},    {"number", 1}};
constexpr int32_t OPERATIONS = sizeof OPERATION_NAMES / sizeof *OPERATION_NAMES;
static_assert(OPERATIONS == static_cast<int32_t>(Operation::number) + 1);

// Operands and results are places: 0 has the similarities, the next ones the constants, and those
// after them values, one after the other.
struct Instruction {
  Operation operation;
  int32_t operands[3];
  int32_t result;  // not of the last one, whose result is the program's
};

struct Program {
  const Instruction* instructions;
  int64_t count;
  const double* constants;
  int64_t constant_count;
  int64_t places;  // with the similarities' and the constants'
};

// Logits and slopes over gamma.
struct FormulaPrograms {
  Program positive, negative, positive_slope, negative_slope;
};

}  // namespace circle_kernels
