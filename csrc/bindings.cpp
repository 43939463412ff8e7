// The Python module circle_kernels._cpu: raw addresses in, nothing of torch. Python checks the
// tensors (circle_kernels/backends/cpu.py); this file only hands them on, without the GIL.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "kernels.h"

namespace py = pybind11;

namespace circle_kernels {
namespace {

using Address = std::uintptr_t;

Embeddings make_embeddings(Address values, int64_t count, int64_t dim, int64_t row_stride,
                           int64_t dim_stride, Address labels, int64_t label_stride) {
  return {reinterpret_cast<const void*>(values),    count,       dim, row_stride, dim_stride,
          reinterpret_cast<const int64_t*>(labels), label_stride};
}

Problem make_problem(Scalar scalar, const Embeddings& rows, const Embeddings* columns,
                     const Formula& formula, bool normalize, double skip_below, int64_t kept_tiles,
                     int threads, int bfloat_terms) {
  return {scalar,
          rows,
          columns != nullptr ? *columns : rows,
          columns == nullptr,
          formula,
          normalize,
          skip_below,
          kept_tiles,
          threads,
          bfloat_terms};
}

void forward(const std::string& level, const Problem& problem, Address lse_pos, Address lse_neg,
             Address saved) {
  run_forward(choose_level(level), problem,
              {reinterpret_cast<void*>(lse_pos), reinterpret_cast<void*>(lse_neg),
               reinterpret_cast<void*>(saved)});
}

void backward(const std::string& level, const Problem& problem, Address saved, Address grad_lse_pos,
              Address grad_lse_neg, Address grad_rows, Address grad_columns) {
  run_backward(choose_level(level), problem,
               {reinterpret_cast<const void*>(saved), reinterpret_cast<const void*>(grad_lse_pos),
                reinterpret_cast<const void*>(grad_lse_neg)},
               {reinterpret_cast<void*>(grad_rows), reinterpret_cast<void*>(grad_columns)});
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
      .value("unified", FormulaKind::unified);

  py::class_<Embeddings>(module, "Embeddings")
      .def(py::init(&make_embeddings), py::kw_only(), py::arg("values"), py::arg("count"),
           py::arg("dim"), py::arg("row_stride"), py::arg("dim_stride"), py::arg("labels"),
           py::arg("label_stride"));
  py::class_<Formula>(module, "Formula")
      .def(py::init<FormulaKind, double, double, double, double, double, bool>(), py::kw_only(),
           py::arg("kind"), py::arg("gamma"), py::arg("optimum_pos"), py::arg("optimum_neg"),
           py::arg("margin_pos"), py::arg("margin_neg"), py::arg("detach_weights"));
  py::class_<Problem>(module, "Problem")
      .def(py::init(&make_problem), py::kw_only(), py::arg("scalar"), py::arg("rows"),
           py::arg("columns").none(true), py::arg("formula"), py::arg("normalize"),
           py::arg("skip_below"), py::arg("kept_tiles"), py::arg("threads"),
           py::arg("bfloat_terms"));
  module.attr("PANEL") = PANEL;

  module.def(
      "level", [](const std::string& name) { return choose_level(name).name; }, py::arg("name"),
      "The level of that name, or the best one here for an empty name.");
  module.def("supported_levels", [] {
    std::vector<std::string> names;
    for (const Level& level : levels()) {
      if (level.supported) names.push_back(level.name);
    }
    return names;
  });
  module.def("forward", &forward, py::arg("level"), py::arg("problem"), py::kw_only(),
             py::arg("lse_pos"), py::arg("lse_neg"), py::arg("saved"),
             py::call_guard<py::gil_scoped_release>());
  module.def("backward", &backward, py::arg("level"), py::arg("problem"), py::kw_only(),
             py::arg("saved"), py::arg("grad_lse_pos"), py::arg("grad_lse_neg"),
             py::arg("grad_rows"), py::arg("grad_columns"),
             py::call_guard<py::gil_scoped_release>());
}
