#include <algorithm>
#include <stdexcept>

#include "kernels.h"

namespace circle_kernels {

namespace baseline {
extern const Kernels kernels;
}
#if defined(CIRCLE_X86)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif

namespace {

std::vector<Level> compiled_levels() {
  std::vector<Level> all{{"baseline", &baseline::kernels, true}};
#if defined(CIRCLE_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  all.push_back({"avx2", &avx2::kernels, avx2});
  all.push_back({"avx512", &avx512::kernels, avx512});
#endif
  return all;
}

std::string supported_names() {
  std::string names;
  for (const Level& level : levels()) {
    if (level.supported) names += (names.empty() ? "" : ", ") + std::string(level.name);
  }
  return names;
}

// Waking threads takes longer than a problem as small as this.
constexpr double SMALLEST_PARALLEL_WORK = 1 << 18;  // multiply-adds of the similarities

Problem with_useful_threads(Problem problem) {
  const double work = static_cast<double>(problem.rows.count) *
                      static_cast<double>(problem.columns.count) *
                      static_cast<double>(problem.rows.dim);
  if (work < SMALLEST_PARALLEL_WORK) problem.threads = 1;
  return problem;
}

}  // namespace

const std::vector<Level>& levels() {
  static const std::vector<Level> all = compiled_levels();
  return all;
}

const Level& choose_level(const std::string& name) {
  const std::vector<Level>& all = levels();
  if (name.empty()) {
    return *std::find_if(all.rbegin(), all.rend(), [](const Level& l) { return l.supported; });
  }
  for (const Level& level : all) {
    if (name != level.name) continue;
    if (level.supported) return level;
    throw std::invalid_argument("this machine does not support '" + name + "'; it supports " +
                                supported_names());
  }
  throw std::invalid_argument("there is no '" + name + "'; this machine supports " +
                              supported_names());
}

void run_forward(const Level& level, const Problem& problem, const ForwardResult& result) {
  const Problem sized = with_useful_threads(problem);
  if (result.saved != nullptr) {
    const std::size_t element = sized.scalar == Scalar::float64 ? sizeof(double) : sizeof(float);
    prefer_huge_pages(result.saved, SavedLayout(sized).size() * element);
  }
  Arena arena;
  level.kernels->forward(sized, order_by_class(sized), arena, result);
}

void run_backward(const Level& level, const Problem& problem, const BackwardInput& input,
                  const Gradients& gradients) {
  const Problem sized = with_useful_threads(problem);
  Arena arena;
  level.kernels->backward(sized, order_by_class(sized), arena, input, gradients);
}

}  // namespace circle_kernels
