// The Python face of the C++ graph core: checks the arguments, lets go of the interpreter lock, calls.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <limits>
#include <string>

#include "topk.hpp"

namespace py = pybind11;

namespace {

std::string type_name(const py::handle& object) {
    return py::str(py::type::of(object).attr("__name__"));
}

// A 1-D C-contiguous float32 array as it lies in memory. Nothing is converted: a copy of an edge list is not ours to make.
py::array_t<float> float32_vector(const py::object& object, const std::string& name) {
    if (!py::isinstance<py::array>(object)) {
        throw py::type_error(name + " must be a float32 numpy array, not " + type_name(object));
    }
    const auto array = py::reinterpret_borrow<py::array>(object);
    if (!py::isinstance<py::array_t<float>>(object)) {
        throw py::type_error(name + " must be a float32 array, not " + std::string(py::str(array.dtype())));
    }
    if (array.ndim() != 1) {
        throw py::value_error(name + " must have 1 dimension, not " + std::to_string(array.ndim()));
    }
    constexpr int plain = py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
    if ((array.flags() & plain) != plain) {
        throw py::value_error(name + " must be contiguous and aligned in memory: pass numpy.array(" + name + ")");
    }
    return py::reinterpret_borrow<py::array_t<float>>(object);
}

// A count: any Python or numpy integer, however large.
std::int64_t count(const py::object& object, const std::string& name) {
    const auto integer = py::reinterpret_steal<py::object>(PyNumber_Index(object.ptr()));
    if (!integer) {
        PyErr_Clear();
        throw py::type_error(name + " must be an integer, not " + type_name(object));
    }
    int overflow = 0;
    const long long value = PyLong_AsLongLongAndOverflow(integer.ptr(), &overflow);
    if (value < 0 && overflow <= 0) {
        throw py::value_error(name + " must not be negative, and " + std::string(py::str(integer)) + " is");
    }
    return overflow > 0 ? std::numeric_limits<std::int64_t>::max() : static_cast<std::int64_t>(value);
}

py::array_t<std::int64_t> topk_magnitude(const py::object& values, const py::object& k) {
    const py::array_t<float> vector = float32_vector(values, "values");
    const std::int64_t k_count = count(k, "k");
    const float* data = vector.data();
    const std::int64_t n = vector.size();

    std::vector<std::int64_t> indices;
    {
        py::gil_scoped_release unlocked;
        indices = lrp_fast::topk_magnitude(data, n, k_count);
    }
    return py::array_t<std::int64_t>(static_cast<py::ssize_t>(indices.size()), indices.data());
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    module.doc() = "The C++ core of lrp_fast. Private.";
    module.def("topk_magnitude", &topk_magnitude, py::arg("values"), py::arg("k"),
               R"doc(Exact top-k by magnitude.

Returns the int64 indices of the k entries of ``values`` with the largest ``|value|``, by ``|value|`` descending, ties
by the lower index. ``values`` is a 1-D contiguous float32 array without NaN; where it has fewer than k entries, all
of them are returned.)doc");
}
