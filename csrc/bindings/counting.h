// The module's functions of exact evaluation.
#pragma once

#include <pybind11/pybind11.h>

namespace circle_kernels {

void bind_counting(pybind11::module_& module);

}  // namespace circle_kernels
