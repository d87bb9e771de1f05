#pragma once

#include <pybind11/pybind11.h>

namespace lrp_fast {

// Adds what pointwise.hpp offers to the module.
void bind_pointwise(pybind11::module_& module);

}  // namespace lrp_fast
