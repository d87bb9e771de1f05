// The Python face of the C++ core: checks the arguments, lets go of the interpreter lock, calls.

#include "arguments.hpp"
#include "attention_module.hpp"
#include "graph_module.hpp"
#include "pointwise_module.hpp"
#include "topk.hpp"

namespace {

namespace py = pybind11;

py::array_t<std::int64_t> topk_magnitude(const py::object& values, const py::object& k) {
    const py::array_t<float> vector = lrp_fast::array_of<float>(values, "values", 1);
    const std::int64_t k_count = lrp_fast::count(k, "k");
    const float* data = vector.data();
    const std::int64_t n = vector.size();

    std::vector<std::int64_t> indices;
    {
        py::gil_scoped_release unlocked;
        indices = lrp_fast::topk_magnitude(data, n, k_count);
    }
    return lrp_fast::to_numpy(std::move(indices));
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    module.doc() = "The C++ core of lrp_fast. Private.";
    module.def("topk_magnitude", &topk_magnitude, py::arg("values"), py::arg("k"),
               R"doc(Exact top-k by magnitude.

Returns the int64 indices of the k entries of ``values`` with the largest ``|value|``, by ``|value|`` descending, ties
by the lower index. ``values`` is a 1-D contiguous float32 array without NaN; where it has fewer than k entries, all
of them are returned.)doc");
    lrp_fast::bind_graph(module);
    lrp_fast::bind_attention(module);
    lrp_fast::bind_pointwise(module);
}
