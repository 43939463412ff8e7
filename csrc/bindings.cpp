// The Python module circle_kernels._cpu: raw addresses in, nothing of torch. Python checks the
// tensors (circle_kernels/backends/cpu.py); this file only hands them on, without the GIL.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <optional>

#include "bindings/counting.h"
#include "bindings/interruptible.h"
#include "common/dispatch.h"
#include "common/listed.h"
#include "common/memory.h"
#include "common/programs/program_memory.h"
#include "common/row_losses.h"

namespace py = pybind11;

namespace circle_kernels {
namespace {

using Address = std::uintptr_t;

// (values, count, dim, row_stride, dim_stride, labels, label_stride): plain integers, since making
// objects for them took longer than a small batch's kernel.
using Side = std::array<int64_t, 7>;

Embeddings make_embeddings(const Side& side) {
  return {reinterpret_cast<const void*>(side[0]),    side[1], side[2], side[3], side[4],
          reinterpret_cast<const int64_t*>(side[5]), side[6]};
}

// (normalize, skip_below, kept_tiles, threads, bfloat_terms, both_sides)
using Settings = std::tuple<bool, double, int64_t, int, int, bool>;

// (address, row_stride) of ListedPair for every pair and (address, stride) of own columns, or zeros
using Pairs = std::array<int64_t, 4>;

Problem make_problem(Scalar scalar, const Side& rows, const std::optional<Side>& columns,
                     const OwnedFormula& formula, const Settings& settings, const Pairs& pairs) {
  const auto& [normalize, skip_below, kept_tiles, threads, bfloat_terms, both_sides] = settings;
  return {scalar,
          make_embeddings(rows),
          make_embeddings(columns.value_or(rows)),
          !columns,
          formula.formula(),
          normalize,
          skip_below,
          kept_tiles,
          threads,
          bfloat_terms,
          reinterpret_cast<const uint8_t*>(pairs[0]),
          pairs[1],
          both_sides,
          reinterpret_cast<const int64_t*>(pairs[2]),
          pairs[3],
          asks_python()};
}

// (lse_pos, lse_neg, saved, its bytes)
using ForwardAddresses = std::array<int64_t, 4>;

void forward(Scalar scalar, const Side& rows, const std::optional<Side>& columns,
             const OwnedFormula& formula, const Settings& settings, const Pairs& pairs,
             const ForwardAddresses& results) {
  const Level& level = current_level();
  run_interruptible([&] {
    run_forward(level, make_problem(scalar, rows, columns, formula, settings, pairs),
                {reinterpret_cast<void*>(results[0]), reinterpret_cast<void*>(results[1]),
                 reinterpret_cast<void*>(results[2]), results[3]});
  });
}

// (lse_pos, lse_neg, saved, its bytes)
void save(Scalar scalar, const Side& rows, const std::optional<Side>& columns,
          const OwnedFormula& formula, const Settings& settings, const Pairs& pairs,
          const ForwardAddresses& tensors) {
  const Level& level = current_level();
  py::gil_scoped_release release;
  run_save(level, make_problem(scalar, rows, columns, formula, settings, pairs),
           {reinterpret_cast<const void*>(tensors[0]), reinterpret_cast<const void*>(tensors[1]),
            reinterpret_cast<void*>(tensors[2]), tensors[3]});
}

// (saved, its bytes, grad_lse_pos, grad_lse_neg, column_statistics, grad_rows, grad_columns)
using BackwardAddresses = std::array<int64_t, 7>;

// At the forward pass's level, and with the tiles that it kept, whatever the settings say now.
void backward(Scalar scalar, const Side& rows, const std::optional<Side>& columns,
              const OwnedFormula& formula, const Settings& settings, const Pairs& pairs,
              const BackwardAddresses& tensors) {
  run_interruptible([&] {
    run_backward(
        make_problem(scalar, rows, columns, formula, settings, pairs),
        {reinterpret_cast<const void*>(tensors[0]), tensors[1],
         reinterpret_cast<const void*>(tensors[2]), reinterpret_cast<const void*>(tensors[3]),
         reinterpret_cast<const void*>(tensors[4])},
        {reinterpret_cast<void*>(tensors[5]), reinterpret_cast<void*>(tensors[6])});
  });
}

// (saved, its bytes, grad_lse_pos, grad_lse_neg, column_statistics, gradients)
using ScaleAddresses = std::array<int64_t, 6>;

void scale_gradients(Scalar scalar, const Side& rows, const std::optional<Side>& columns,
                     const OwnedFormula& formula, const Settings& settings, const Pairs& pairs,
                     const ScaleAddresses& tensors) {
  run_interruptible([&] {
    run_scale_gradients(
        make_problem(scalar, rows, columns, formula, settings, pairs),
        {reinterpret_cast<const void*>(tensors[0]), tensors[1],
         reinterpret_cast<const void*>(tensors[2]), reinterpret_cast<const void*>(tensors[3]),
         reinterpret_cast<const void*>(tensors[4])},
        reinterpret_cast<void*>(tensors[5]));
  });
}

// (rows, columns, count) and (kinds, rows, columns, row_stride)
bool mark_pairs_at(const std::array<int64_t, 3>& list, int kind,
                   const std::array<int64_t, 4>& matrix, int threads) {
  py::gil_scoped_release release;
  return mark_pairs(
      {reinterpret_cast<const int64_t*>(list[0]), reinterpret_cast<const int64_t*>(list[1]),
       list[2], static_cast<uint8_t>(kind)},
      {reinterpret_cast<uint8_t*>(matrix[0]), matrix[1], matrix[2], matrix[3]}, threads);
}

template <class Run>
void with_float(bool is_double, Run run) {
  is_double ? run(double{}) : run(float{});
}

// (lse_pos, lse_neg, loss, slopes), of double or of float
void row_losses_at(bool is_double, const std::array<Address, 4>& tensors, int64_t rows,
                   Reduction reduction) {
  py::gil_scoped_release release;
  with_float(is_double, [&](auto zero) {
    using T = decltype(zero);
    row_losses(reinterpret_cast<const T*>(tensors[0]), reinterpret_cast<const T*>(tensors[1]), rows,
               reduction, reinterpret_cast<T*>(tensors[2]), reinterpret_cast<T*>(tensors[3]));
  });
}

// (saved bytes, loss, grad_rows, grad_columns)
using StepAddresses = std::array<int64_t, 4>;

// Both passes with the losses of rows between them: a small batch takes as long as three calls.
void loss_and_gradients(Scalar scalar, const Side& rows, const std::optional<Side>& columns,
                        const OwnedFormula& formula, const Settings& settings, const Pairs& pairs,
                        Reduction reduction, const StepAddresses& tensors) {
  const Level& level = current_level();
  const Problem problem = make_problem(scalar, rows, columns, formula, settings, pairs);
  const int64_t count = problem.anchors();
  run_interruptible([&] {
    with_float(scalar == Scalar::float64, [&](auto zero) {
      using T = decltype(zero);
      const Block saved(tensors[0]);
      const std::unique_ptr<T[]> vectors(new T[3 * count]);
      T *lse_pos = vectors.get(), *lse_neg = lse_pos + count, *slopes = lse_neg + count;
      run_forward(level, problem, {lse_pos, lse_neg, saved.data(), tensors[0]});
      row_losses(lse_pos, lse_neg, count, reduction, reinterpret_cast<T*>(tensors[1]), slopes);
      run_backward(problem, {saved.data(), tensors[0], slopes, slopes},
                   {reinterpret_cast<void*>(tensors[2]), reinterpret_cast<void*>(tensors[3])});
    });
  });
}

}  // namespace
}  // namespace circle_kernels

PYBIND11_MODULE(_cpu, module) {
  using namespace circle_kernels;
  module.doc() = "The C++ kernel. Addresses are Tensor.data_ptr(); 0 where there is no tensor.";

  py::enum_<Scalar>(module, "Scalar")
      .value("float16", Scalar::float16)
      .value("bfloat16", Scalar::bfloat16)
      .value("float32", Scalar::float32)
      .value("float64", Scalar::float64);
  py::enum_<FormulaKind>(module, "FormulaKind")
      .value("circle", FormulaKind::circle)
      .value("unified", FormulaKind::unified)
      .value("functions", FormulaKind::functions);

  py::enum_<Reduction>(module, "Reduction")
      .value("mean", Reduction::mean)
      .value("mean_all", Reduction::mean_all)
      .value("mean_nonzero", Reduction::mean_nonzero)
      .value("sum", Reduction::sum)
      .value("none", Reduction::none);

  py::class_<OwnedFormula>(module, "Formula")
      .def(py::init([](FormulaKind kind, double gamma_pos, double gamma_neg, double optimum_pos,
                       double optimum_neg, double margin_pos, double margin_neg,
                       bool detach_weights, const std::vector<ByteCode>& programs) {
             return std::make_unique<OwnedFormula>(
                 Formula{kind, gamma_pos, gamma_neg, optimum_pos, optimum_neg, margin_pos,
                         margin_neg, detach_weights},
                 programs);
           }),
           py::kw_only(), py::arg("kind"), py::arg("gamma_pos"), py::arg("gamma_neg"),
           py::arg("optimum_pos"), py::arg("optimum_neg"), py::arg("margin_pos"),
           py::arg("margin_neg"), py::arg("detach_weights"), py::arg("programs"));
  py::dict operations;
  for (int32_t code = 0; code < OPERATIONS; ++code) operations[OPERATION_NAMES[code].name] = code;
  module.attr("OPERATIONS") = operations;
  find_main_thread();
  module.attr("PANEL") = PANEL;
  module.attr("has_openmp") = CIRCLE_OPENMP != 0;  // from CMakeLists.txt
  module.attr("SAVED_HEADER_BYTES") = SAVED_HEADER_BYTES;

  py::class_<Block>(module, "Block", py::buffer_protocol(),
                    "So many bytes of memory, which go back to a small store when nobody refers to "
                    "them any more.")
      .def(py::init<std::size_t>(), py::arg("bytes"))
      .def_buffer([](Block& block) {
        return py::buffer_info(block.data(), 1, py::format_descriptor<uint8_t>::format(),
                               static_cast<py::ssize_t>(block.size()));
      });

  module.def(
      "level", [] { return current_level().name; },
      "The instruction set in use; ValueError if the one asked for cannot be.");
  module.def("supported_levels", [] {
    std::vector<std::string> names;
    for (const Level& level : levels()) {
      if (level.supported) names.push_back(level.name);
    }
    return names;
  });
  // Tuples are described above.
  module.def("forward", &forward, py::arg("scalar"), py::arg("rows"), py::arg("columns"),
             py::arg("formula"), py::arg("settings"), py::arg("pairs"), py::arg("results"));
  module.def("save", &save, py::arg("scalar"), py::arg("rows"), py::arg("columns"),
             py::arg("formula"), py::arg("settings"), py::arg("pairs"), py::arg("tensors"));
  module.def("backward", &backward, py::arg("scalar"), py::arg("rows"), py::arg("columns"),
             py::arg("formula"), py::arg("settings"), py::arg("pairs"), py::arg("tensors"));
  module.def("scale_gradients", &scale_gradients, py::arg("scalar"), py::arg("rows"),
             py::arg("columns"), py::arg("formula"), py::arg("settings"), py::arg("pairs"),
             py::arg("tensors"));
  module.def("mark_pairs", &mark_pairs_at, py::arg("list"), py::arg("kind"), py::arg("matrix"),
             py::arg("threads"));
  module.def("row_losses", &row_losses_at, py::arg("is_double"), py::arg("tensors"),
             py::arg("rows"), py::arg("reduction"));
  module.def("loss_and_gradients", &loss_and_gradients, py::arg("scalar"), py::arg("rows"),
             py::arg("columns"), py::arg("formula"), py::arg("settings"), py::arg("pairs"),
             py::arg("reduction"), py::arg("tensors"));
  bind_counting(module);
}
