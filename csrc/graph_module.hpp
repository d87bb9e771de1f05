#pragma once

#include <pybind11/pybind11.h>

namespace lrp_fast {

// Adds the algorithms over layered graphs to the module.
void bind_graph(pybind11::module_& module);

}  // namespace lrp_fast
