#include "common/programs/program_memory.h"

#include <stdexcept>

namespace circle_kernels {

OwnedFormula::OwnedFormula(const Formula& formula, const std::vector<ByteCode>& programs)
    : formula_(formula) {
  const bool of_functions = formula.kind == FormulaKind::functions;
  if (programs.size() != (of_functions ? memory_.size() : 0)) {
    throw std::invalid_argument("a formula of functions has four programs, and no other has any");
  }
  if (!of_functions) return;
  Program* const places[] = {&programs_.positive, &programs_.negative, &programs_.positive_slope,
                             &programs_.negative_slope};
  for (std::size_t index = 0; index < programs.size(); ++index) {
    *places[index] = keep(programs[index], memory_[index]);
  }
  formula_.programs = &programs_;
}

Program OwnedFormula::keep(const ByteCode& code, Memory& memory) {
  const auto& [constants, places, instructions] = code;
  const auto first_value = static_cast<int64_t>(constants.size()) + 1;
  bool valid = !instructions.empty() && places >= first_value;
  for (const auto& [operation, operands, result] : instructions) {
    valid = valid && operation >= 0 && operation < OPERATIONS &&
            operands.size() == static_cast<std::size_t>(OPERATION_NAMES[operation].operands) &&
            result >= first_value && result < places;
    if (!valid) break;
    Instruction instruction{static_cast<Operation>(operation), {0, 0, 0}, result};
    for (std::size_t index = 0; index < operands.size(); ++index) {
      valid = valid && operands[index] >= 0 && operands[index] < places;
      instruction.operands[index] = operands[index];
    }
    memory.instructions.push_back(instruction);
  }
  if (!valid) throw std::invalid_argument("a program has instructions that cannot be run");
  memory.constants = constants;
  return {memory.instructions.data(), static_cast<int64_t>(memory.instructions.size()),
          memory.constants.data(), static_cast<int64_t>(memory.constants.size()), places};
}

}  // namespace circle_kernels
