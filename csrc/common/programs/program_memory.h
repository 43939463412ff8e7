// Programs as a caller hands them over, checked and kept.
#pragma once

#include <array>
#include <tuple>
#include <vector>

#include "common/problem.h"
#include "common/programs/program.h"

namespace circle_kernels {

// (constants, places, (operation, places of operands, place of the result) of each instruction)
using ByteCode = std::tuple<std::vector<double>, int64_t,
                            std::vector<std::tuple<int32_t, std::vector<int32_t>, int32_t>>>;

// A formula, with the programs that it points to.
class OwnedFormula {
 public:
  // `programs` are as FormulaPrograms has them, or none. Throws std::invalid_argument where they
  // are not, or reach for places that are not theirs.
  OwnedFormula(const Formula& formula, const std::vector<ByteCode>& programs);
  OwnedFormula(const OwnedFormula&) = delete;
  OwnedFormula& operator=(const OwnedFormula&) = delete;

  const Formula& formula() const { return formula_; }

 private:
  struct Memory {
    std::vector<double> constants;
    std::vector<Instruction> instructions;
  };

  Program keep(const ByteCode& code, Memory& memory);

  Formula formula_;
  std::array<Memory, 4> memory_;
  FormulaPrograms programs_{};
};

}  // namespace circle_kernels
