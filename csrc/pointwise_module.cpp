// The Python face of pointwise.cpp: checks the arguments, lets go of the interpreter lock, calls.

#include "pointwise_module.hpp"

#include <cstdint>
#include <string>
#include <vector>

#include "arguments.hpp"
#include "pointwise.hpp"

namespace lrp_fast {
namespace {

Rows<const float> rows_of(const py::object& object, const std::string& name, const Shape& shape) {
    const auto array = dense_array_of(object, name, 2, &shape);
    return {array.data(), array.strides(0) / 4};
}

Rows<float> rows_to(const py::object& object, const std::string& name, const Shape& shape) {
    auto array = dense_array_of(object, name, 2, &shape);
    return {array.mutable_data(), array.strides(0) / 4};
}

void gated_mlp(const py::object& g, const py::object& gate, const py::object& up, double linear, double cubic,
               double share, const py::object& d_gate, const py::object& d_up, const py::object& threads,
               const py::object& lanes) {
    const auto like = dense_array_of(g, "g", 2);
    const Shape shape{like.shape(0), like.shape(1)};
    if (up.is_none() != d_gate.is_none()) throw py::value_error("only up and d_gate may be None, and both of them");
    GatedMlp given{shape[0], shape[1], rows_of(g, "g", shape), rows_of(gate, "gate", shape), {nullptr, 0},
                   {nullptr, 0}, rows_to(d_up, "d_up", shape), static_cast<float>(linear), static_cast<float>(cubic),
                   static_cast<float>(share)};
    if (!up.is_none()) {
        given.up = rows_of(up, "up", shape);
        given.d_gate = rows_to(d_gate, "d_gate", shape);
    }
    const int on = threads_of(threads);
    const std::int64_t width = count(lanes, "lanes");
    const py::gil_scoped_release unlocked;
    gated_mlp_backward(given, on, width);
}

Heads<const float> angles_of(const py::object& object, const std::string& name, const Shape& of) {
    const auto array = dense_array_of(object, name, 3);
    const Shape shape{array.shape(0) == 1 ? 1 : of[0], of[2], of[3]};
    dense_array_of(object, name, 3, &shape);
    return {array.data(), array.shape(0) == 1 ? 0 : array.strides(0) / 4, 0, array.strides(1) / 4};
}

void rotate(const py::object& x, const py::object& cos, const py::object& sin, const py::object& out, bool back,
            const py::object& threads) {
    const auto from = dense_array_of(x, "x", 4);
    const Shape shape{from.shape(0), from.shape(1), from.shape(2), from.shape(3)};
    if (shape[3] % 2) throw py::value_error("the features must be even");
    auto to = dense_array_of(out, "out", 4, &shape);
    const Rotary given{shape[0], shape[1], shape[2], shape[3],
                       {from.data(), from.strides(0) / 4, from.strides(1) / 4, from.strides(2) / 4},
                       angles_of(cos, "cos", shape), angles_of(sin, "sin", shape),
                       {to.mutable_data(), to.strides(0) / 4, to.strides(1) / 4, to.strides(2) / 4}, back};
    const int on = threads_of(threads);
    const py::gil_scoped_release unlocked;
    rotary(given, on);
}

}  // namespace

void bind_pointwise(py::module_& module) {
    using py::arg;
    module.def("pointwise_serves", &pointwise_serves, "Whether this processor has what the two below take.",
               arg("lanes") = 0);
    module.def("gated_mlp_backward", &gated_mlp,
               R"doc(Writes the relevance gradients of act(gate) up, all (rows, columns) float32 with dense columns.

act(z) is z / (1 + exp(-(linear z + cubic z^3))). ``d_up`` is share g act(gate), ``d_gate`` share g up act(gate) / gate; it
and ``up`` may both be None. ``lanes``: 16 for AVX-512, 8 for AVX2, 0 for what there is.)doc",
               arg("g"), arg("gate"), arg("up"), arg("linear"), arg("cubic"), arg("share"), arg("d_gate"), arg("d_up"),
               arg("threads"), arg("lanes") = 0);
    module.def("rotary", &rotate,
               R"doc(Writes x cos + rotate_half(x) sin, or with ``back`` its transpose of x, to ``out``.

``x`` and ``out`` are (B, H, T, D), ``cos`` and ``sin`` (B or 1, T, D), float32, the last dimension dense. No two numbers
of ``out`` share their place, with each other or with what is read.)doc",
               arg("x"), arg("cos"), arg("sin"), arg("out"), arg("back"), arg("threads"));
}

}  // namespace lrp_fast
