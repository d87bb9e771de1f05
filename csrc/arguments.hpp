#pragma once

// What Python hands over, checked. Nothing is converted: a copy of an edge list is not ours to make.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace lrp_fast {

namespace py = pybind11;

using Shape = std::vector<py::ssize_t>;

inline std::string type_name(const py::handle& object) { return py::str(py::type::of(object).attr("__name__")); }

template <class T>
std::string dtype_name() {
    return py::str(py::dtype::of<T>());
}

// A C-contiguous array of T with `dimensions` dimensions, as it lies in memory.
template <class T>
py::array_t<T> array_of(const py::object& object, const std::string& name, int dimensions) {
    if (!py::isinstance<py::array>(object)) {
        throw py::type_error(name + " must be a " + dtype_name<T>() + " numpy array, not " + type_name(object));
    }
    const auto array = py::reinterpret_borrow<py::array>(object);
    if (!py::isinstance<py::array_t<T>>(object)) {
        throw py::type_error(name + " must be a " + dtype_name<T>() + " array, not " +
                             std::string(py::str(array.dtype())));
    }
    if (array.ndim() != dimensions) {
        throw py::value_error(name + " must have " + std::to_string(dimensions) +
                              (dimensions == 1 ? " dimension" : " dimensions") + ", not " +
                              std::to_string(array.ndim()));
    }
    constexpr int plain = py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
    if ((array.flags() & plain) != plain) {
        throw py::value_error(name + " must be contiguous and aligned in memory: pass numpy.array(" + name + ")");
    }
    return py::reinterpret_borrow<py::array_t<T>>(object);
}

// The same with a given size in each dimension.
template <class T>
py::array_t<T> shaped_array_of(const py::object& object, const std::string& name,
                               const Shape& shape) {
    const py::array_t<T> array = array_of<T>(object, name, static_cast<int>(shape.size()));
    for (std::size_t i = 0; i < shape.size(); ++i) {
        if (array.shape(i) != shape[i]) {
            throw py::value_error(name + " must have size " + std::to_string(shape[i]) + " in dimension " +
                                  std::to_string(i) + ", not " + std::to_string(array.shape(i)));
        }
    }
    return array;
}

// float32 in which the last dimension alone has to lie densely; a shape that is given is checked.
inline py::array_t<float> dense_array_of(const py::object& object, const std::string& name, int dimensions,
                                         const Shape* shape = nullptr) {
    if (!py::isinstance<py::array_t<float>>(object)) throw py::type_error(name + " must be a float32 numpy array");
    const auto array = py::reinterpret_borrow<py::array_t<float>>(object);
    constexpr auto size = static_cast<py::ssize_t>(sizeof(float));
    const bool fits = array.ndim() == dimensions;
    if (!fits || (array.size() && array.shape(dimensions - 1) > 1 && array.strides(dimensions - 1) != size)) {
        throw py::value_error(name + " must have " + std::to_string(dimensions) + " dimensions, the last of them dense");
    }
    bool aligned = reinterpret_cast<std::uintptr_t>(array.data()) % alignof(float) == 0;
    for (int i = 0; i < dimensions; ++i) {
        aligned = aligned && array.strides(i) % size == 0;
        if (shape && array.shape(i) != (*shape)[i]) {
            throw py::value_error(name + " does not fit: dimension " + std::to_string(i));
        }
    }
    if (!aligned) throw py::value_error(name + " must be aligned in memory");
    return array;
}

// A count: any Python or numpy integer, however large.
inline std::int64_t count(const py::object& object, const std::string& name) {
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

inline int threads_of(const py::object& threads) {
    return static_cast<int>(std::min<std::int64_t>(count(threads, "threads"), 1024));
}

// The vector as an array of the given shape, or flat; its memory goes along.
template <class V>
py::array_t<V> to_numpy(std::vector<V>&& values, std::vector<py::ssize_t> shape = {}) {
    auto* moved = new std::vector<V>(std::move(values));
    const py::capsule owner(moved, [](void* pointer) { delete static_cast<std::vector<V>*>(pointer); });
    if (shape.empty()) shape = {static_cast<py::ssize_t>(moved->size())};
    return py::array_t<V>(shape, moved->data(), owner);
}

}  // namespace lrp_fast
