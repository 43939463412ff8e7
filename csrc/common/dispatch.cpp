#include "common/dispatch.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>
#include <stdexcept>

#include "common/saved_header.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(CIRCLE_X86) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

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
namespace avx512_bf16 {
extern const BFloatProducts products;
}
namespace amx {
extern const BFloatProducts products;
}
#endif

namespace {

#if defined(CIRCLE_X86)
// AMX' tiles are memory that Linux gives to a process only when asked, once.
bool may_use_amx() {
#if defined(CIRCLE_IMITATE_AMX)
  return true;
#elif defined(CIRCLE_AMX) && defined(__linux__)
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  constexpr unsigned AMX_BF16 = 1u << 22, AMX_TILE = 1u << 24;
  if ((edx & AMX_BF16) == 0 || (edx & AMX_TILE) == 0) return false;
  constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
  return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
  return false;
#endif
}
#endif

std::vector<Level> compiled_levels() {
  std::vector<Level> all{{"baseline", &baseline::kernels, nullptr, true}};
#if defined(CIRCLE_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
#if defined(CIRCLE_AVX2)
  all.push_back({"avx2", &avx2::kernels, nullptr, avx2});
#endif
  all.push_back({"avx512", &avx512::kernels, nullptr, avx512});
#if defined(CIRCLE_AVX512_BF16)
  all.push_back({"avx512_bf16", &avx512::kernels, &avx512_bf16::products,
                 avx512 && __builtin_cpu_supports("avx512bf16")});
#endif
#if defined(CIRCLE_AMX)
  all.push_back({"amx", &avx512::kernels, &amx::products, avx512 && may_use_amx()});
#endif
#endif
  return all;
}

constexpr const char* LEVEL_VARIABLE = "CIRCLE_KERNELS_CPU_LEVEL";

std::string supported_names() {
  std::string names;
  for (const Level& level : levels()) {
    if (level.supported) names += (names.empty() ? "" : ", ") + std::string(level.name);
  }
  return names;
}

// In a child of fork() the threads that the parent's OpenMP runtime made do not exist, and waiting
// for them would never end: such a process computes with one.
std::atomic<bool> is_forked{false};

#if defined(__unix__) || defined(__APPLE__)
[[maybe_unused]] const int watches_forks =
    pthread_atfork(nullptr, nullptr, [] { is_forked = true; });
#endif

// Waking threads takes longer than a problem as small as this, and nobody waits for its end.
constexpr double SMALLEST_PARALLEL_WORK = 1 << 18;  // multiply-adds of the similarities

// A problem, or sides, of so many multiply-adds with as many threads as are of use.
template <class P>
void adapt_threads(P& problem, double work) {
  if (work < SMALLEST_PARALLEL_WORK || is_forked) problem.threads = 1;
  if (work < SMALLEST_PARALLEL_WORK) problem.interrupted = nullptr;
}

// The problem with as many threads as are of use and the bfloat16 products that this level has.
Problem adapted(Problem problem, const Level& level) {
  const double work = static_cast<double>(problem.rows.count) *
                      static_cast<double>(problem.columns.count) *
                      static_cast<double>(problem.rows.dim);
  adapt_threads(problem, work);
  if (problem.scalar == Scalar::bfloat16) problem.bfloat_terms = 1;
  const bool of_use = level.products != nullptr &&
                      (problem.bfloat_terms < 3 || level.products->three_terms_pay) &&
                      (problem.scalar == Scalar::bfloat16 || problem.scalar == Scalar::float32);
  if (!of_use) problem.bfloat_terms = 0;
  return problem;
}

// Refuses counts whose products, the sizes of both passes' memory in bytes among them, could
// overflow. Also dimensions that nobody has, but a view that repeats one value: working through
// them takes days.
void check_sizes(const Problem& problem) {
  struct TooLarge : std::bad_alloc {
    const char* what() const noexcept override {
      return "circle_kernels: embeddings of this shape do not fit into memory";
    }
  };
  constexpr double MOST_BYTES = 0x1p62;
  constexpr int64_t MOST_DIMENSIONS = int64_t{1} << 31;
  const auto padded = [](int64_t count) { return static_cast<double>(count) + 2 * PANEL; };
  const double depth = static_cast<double>(problem.rows.dim) + BFLOAT_DEPTH;
  const double rows = padded(problem.rows.count), columns = padded(problem.columns.count);
  constexpr double NUMBER_BYTES = sizeof(double), TERMS = 3;
  const double most = std::max(rows, columns) * depth * TERMS * NUMBER_BYTES;
  if (std::max(most, 2 * rows * columns * NUMBER_BYTES) > MOST_BYTES ||
      problem.rows.dim > MOST_DIMENSIONS) {
    throw TooLarge();
  }
}

int index_of(const Level& level) { return static_cast<int>(&level - levels().data()); }

const Level& level_of(const SavedBy& saved_by) {
  const std::vector<Level>& all = levels();
  const auto index = static_cast<std::size_t>(saved_by.level);
  if (index < all.size() && all[index].supported) return all[index];
  throw std::runtime_error(
      "circle_kernels: what the forward pass saved comes from an instruction set that this machine "
      "does not have");
}

// Runs a pass at the level of the forward pass, and with the tiles that it kept.
template <class Pass>
void run_after_forward(const Problem& problem, const BackwardInput& input, Pass pass) {
  check_sizes(problem);
  const SavedBy saved_by = read_saved_header(problem, input.saved, input.saved_bytes);
  const Level& level = level_of(saved_by);
  Problem adapted_problem = adapted(problem, level);
  adapted_problem.kept_tiles = saved_by.kept_tiles;
  if (!pass(level, adapted_problem)) throw Interrupted();
}

}  // namespace

const std::vector<Level>& levels() {
  static const std::vector<Level> all = compiled_levels();
  return all;
}

const Level& current_level() {
  const std::vector<Level>& all = levels();
  const char* variable = std::getenv(LEVEL_VARIABLE);
  const std::string name = variable != nullptr ? variable : "";
  if (name.empty()) {
    return *std::find_if(all.rbegin(), all.rend(), [](const Level& l) { return l.supported; });
  }
  const auto found =
      std::find_if(all.begin(), all.end(), [&](const Level& l) { return name == l.name; });
  if (found != all.end() && found->supported) return *found;
  const char* problem = found == all.end() ? ": there is no '" : ": this machine does not run '";
  throw std::invalid_argument(LEVEL_VARIABLE + (problem + name) + "'; this machine supports " +
                              supported_names());
}

void run_forward(const Level& level, const Problem& problem, const ForwardResult& result) {
  check_sizes(problem);
  if (result.saved != nullptr) check_saved_memory(problem, result.saved_bytes);
  const Problem adapted_problem = adapted(problem, level);
  Arena arena;
  if (!level.kernels->forward(adapted_problem, order_by_class(adapted_problem), level.products,
                              arena, result)) {
    throw Interrupted();
  }
  if (result.saved != nullptr) write_saved_header(problem, index_of(level), result.saved);
}

void run_save(const Level& level, Problem problem, const KnownSums& sums) {
  problem.kept_tiles = 0;
  check_sizes(problem);
  check_saved_memory(problem, sums.saved_bytes);
  level.kernels->save(problem, order_by_class(problem), sums);
  write_saved_header(problem, index_of(level), sums.saved);
}

void run_backward(const Problem& problem, const BackwardInput& input, const Gradients& gradients) {
  run_after_forward(problem, input, [&](const Level& level, const Problem& adapted_problem) {
    Arena arena;
    return level.kernels->backward(adapted_problem, order_by_class(adapted_problem), level.products,
                                   arena, input, gradients);
  });
}

void run_scale_gradients(const Problem& problem, const BackwardInput& input, void* gradients) {
  run_after_forward(problem, input, [&](const Level& level, const Problem& adapted_problem) {
    Arena arena;
    return level.kernels->scale_gradients(adapted_problem, order_by_class(adapted_problem),
                                          level.products, arena, input, gradients);
  });
}

void run_exact_similarities(const Level& level, ExactSides sides, const ExactPairs& pairs) {
  adapt_threads(sides, static_cast<double>(pairs.count) * static_cast<double>(sides.dim));
  if (!level.kernels->exact_similarities(sides, pairs)) throw Interrupted();
}

void run_count_above(const Level& level, ExactSides sides, const ThresholdCounts& counts) {
  adapt_threads(sides, static_cast<double>(counts.rows) * static_cast<double>(counts.columns) *
                           static_cast<double>(sides.dim));
  Arena arena;
  if (!level.kernels->count_above(sides, counts, arena)) throw Interrupted();
}

}  // namespace circle_kernels
