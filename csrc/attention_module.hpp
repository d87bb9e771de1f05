#pragma once

#include <pybind11/pybind11.h>

namespace lrp_fast {

// Adds the backward pass of attention to the module.
void bind_attention(pybind11::module_& module);

}  // namespace lrp_fast
