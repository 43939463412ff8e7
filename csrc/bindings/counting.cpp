#include "bindings/counting.h"

#include <pybind11/stl.h>

#include <array>

#include "bindings/interruptible.h"

namespace py = pybind11;

namespace circle_kernels {
namespace {

// (rows, columns, dim)
using SideAddresses = std::array<int64_t, 3>;

ExactSides make_sides(const SideAddresses& sides, int threads) {
  return {reinterpret_cast<const double*>(sides[0]), reinterpret_cast<const double*>(sides[1]),
          sides[2], threads, asks_python()};
}

// (row_indices, column_indices, count, similarities)
void exact_similarities(const SideAddresses& sides, const std::array<int64_t, 4>& pairs,
                        int threads) {
  const Level& level = current_level();
  run_interruptible([&] {
    run_exact_similarities(
        level, make_sides(sides, threads),
        {reinterpret_cast<const int64_t*>(pairs[0]), reinterpret_cast<const int64_t*>(pairs[1]),
         pairs[2], reinterpret_cast<double*>(pairs[3])});
  });
}

// (rows, columns, thresholds, offsets, at_least, above); `advance` is called now and then with the
// number of pairs that have been counted since
void count_above(const SideAddresses& sides, const std::array<int64_t, 6>& counts, int threads,
                 const std::optional<py::function>& advance) {
  const Level& level = current_level();
  int64_t counted = 0, reported = 0;
  std::optional<Reporting> reporting;
  if (advance) {
    reporting.emplace([&] {
      const int64_t now = __atomic_load_n(&counted, __ATOMIC_RELAXED);
      (*advance)(now - reported);
      reported = now;
    });
  }
  run_interruptible([&] {
    run_count_above(
        level, make_sides(sides, threads),
        {counts[0], counts[1], reinterpret_cast<const double*>(counts[2]),
         reinterpret_cast<const int64_t*>(counts[3]), reinterpret_cast<int64_t*>(counts[4]),
         reinterpret_cast<int64_t*>(counts[5]), advance ? &counted : nullptr});
  });
  if (advance) (*advance)(counts[0] * counts[1] - reported);
}

}  // namespace

void bind_counting(py::module_& module) {
  // Tuples are described above.
  module.def("exact_similarities", &exact_similarities, py::arg("sides"), py::arg("pairs"),
             py::arg("threads"));
  module.def("count_above", &count_above, py::arg("sides"), py::arg("counts"), py::arg("threads"),
             py::arg("advance"));
}

}  // namespace circle_kernels
