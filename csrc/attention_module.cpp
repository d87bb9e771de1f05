// The Python face of attention.cpp: checks the arguments, lets go of the interpreter lock, calls.

#include "attention_module.hpp"

#include <algorithm>

#include "arguments.hpp"
#include "attention.hpp"

namespace lrp_fast {
namespace {

using Shape = std::vector<py::ssize_t>;

// float32 (heads, tokens, features) whose features are dense.
py::array_t<float> tokens_of(const py::object& object, const std::string& name) {
    if (!py::isinstance<py::array_t<float>>(object)) throw py::type_error(name + " must be a float32 numpy array");
    const auto array = py::reinterpret_borrow<py::array_t<float>>(object);
    constexpr auto size = static_cast<py::ssize_t>(sizeof(float));
    if (array.ndim() != 3 || array.strides(2) != size || array.strides(0) % size || array.strides(1) % size) {
        throw py::value_error(name + " must have 3 dimensions, the last of them dense");
    }
    return array;
}

void check(const py::array_t<float>& array, const std::string& name, const Shape& shape) {
    for (int i = 0; i < 3; ++i) {
        if (array.shape(i) != shape[i]) throw py::value_error(name + " does not fit: dimension " + std::to_string(i));
    }
}

Tokens<const float> read(const py::object& object, const std::string& name, const Shape& shape) {
    const auto array = tokens_of(object, name);
    check(array, name, shape);
    return {array.data(), array.strides(0) / 4, array.strides(1) / 4};
}

Tokens<float> written(const py::object& object, const std::string& name, const Shape& shape) {
    auto array = tokens_of(object, name);
    check(array, name, shape);
    return {array.mutable_data(), array.strides(0) / 4, array.strides(1) / 4};
}

const float* rows(const py::object& object, const std::string& name, const Shape& shape) {
    return object.is_none() ? nullptr : shaped_array_of<float>(object, name, shape).data();
}

double backward(const py::object& g, const py::object& query, const py::object& key, const py::object& value,
                const py::object& out, const py::object& lse, const py::object& norm, const py::object& tiles,
                double scale, const py::object& behind, const py::object& ahead, const py::object& d_query,
                const py::object& d_key, const py::object& d_value, const py::object& work, const py::object& threads,
                const py::object& lanes) {
    const auto queries = tokens_of(query, "query"), keys = tokens_of(key, "key");
    const Shape of_queries{queries.shape(0), queries.shape(1), queries.shape(2)}, of_rows{of_queries[0], of_queries[1]};
    const Shape of_keys{keys.shape(0), keys.shape(1), of_queries[2]};
    if (of_keys[0] < 1 || of_queries[0] < 1 || of_queries[0] % of_keys[0] || of_queries[1] < 1 ||
        of_queries[1] > of_keys[1]) {
        throw py::value_error("the heads of queries must be a multiple of those of keys, and the queries 1 to all keys");
    }
    const std::int64_t width = count(lanes, "lanes");
    if (!attention_backward_serves(of_queries[2], width)) {
        throw py::value_error("the features must be a multiple of 16, up to 256, and the processor have AVX2");
    }
    if (d_query.is_none() != d_key.is_none() || lse.is_none()) {
        throw py::value_error("only norm, tiles, and d_query with d_key may be None");
    }
    constexpr std::int64_t most = std::int64_t{1} << 40;  // so that no sum of a few overflows
    AttentionShape shape{of_queries[0], of_keys[0], of_queries[1], of_keys[1], of_queries[2], static_cast<float>(scale),
                         std::min(count(behind, "behind"), most), std::min(count(ahead, "ahead"), most),
                         !d_query.is_none()};
    AttentionGiven given{read(g, "g", of_queries),      read(query, "query", of_queries), read(key, "key", of_keys),
                         read(value, "value", of_keys), read(out, "out", of_queries),     rows(lse, "lse", of_rows),
                         rows(norm, "norm", of_rows),   nullptr};
    if (!tiles.is_none()) {
        const Shape of_tiles{of_queries[0], attention_tiles(of_queries[1]), attention_tiles(of_keys[1])};
        given.tiles = shaped_array_of<std::uint8_t>(tiles, "tiles", of_tiles).data();
    }
    AttentionGradients gradients{{}, {}, written(d_value, "d_value", of_keys)};
    if (shape.scores) {
        gradients.query = written(d_query, "d_query", of_queries);
        gradients.key = written(d_key, "d_key", of_keys);
    }
    auto room = shaped_array_of<float>(work, "work", {attention_backward_floats(shape)});
    float* const rooms = room.mutable_data();
    const int on = static_cast<int>(std::min<std::int64_t>(count(threads, "threads"), 1024));
    const py::gil_scoped_release unlocked;
    return attention_backward(shape, given, gradients, rooms, on, width);
}

std::int64_t floats(const py::object& heads, const py::object& key_heads, const py::object& queries,
                    const py::object& keys, const py::object& features, bool scores) {
    const std::int64_t of_queries = count(heads, "heads"), of_keys = count(key_heads, "key_heads");
    if (of_queries < 1 || of_keys < 1) throw py::value_error("there must be heads");
    return attention_backward_floats({of_queries, of_keys, count(queries, "queries"), count(keys, "keys"),
                                      count(features, "features"), 1, 1, 1, scores});
}

}  // namespace

void bind_attention(py::module_& module) {
    using py::arg;
    module.def("attention_backward_serves", &attention_backward_serves,
               "Whether `attention_backward` takes heads of so many features, on this processor.", arg("features"),
               arg("lanes") = 0);
    module.def("attention_backward_floats", &floats,
               "How many floats `attention_backward` takes to work in; without scores, it gets no d_query and d_key.",
               arg("heads"), arg("key_heads"), arg("queries"), arg("keys"), arg("features"), arg("scores"));
    module.def("attention_backward", &backward,
               R"doc(Adds the gradients of attention by tiles of 64 queries and 64 keys; returns the mass of those tiles.

``g``, ``query``, ``out`` and ``d_query`` are (H, T, D), ``key``, ``value`` and their gradients (H_kv, S, D), float32, the
last dimension dense; ``lse`` and ``norm`` (|g|; None: no mass) (H, T), contiguous float32; ``tiles`` is (H, tiles of T, tiles of S) uint8, of those to be visited, or
None for all. The query at p = S - T + i reads the keys p - behind + 1 ... p + ahead - 1. ``d_query`` and ``d_key`` may
both be None: the weights are constants. ``work`` is as many float32 as `attention_backward_floats` says. ``lanes``: 16 for AVX-512, 8 for AVX2, 0 for what there is.)doc",
               arg("g"), arg("query"), arg("key"), arg("value"), arg("out"), arg("lse"), arg("norm"), arg("tiles"),
               arg("scale"), arg("behind"), arg("ahead"), arg("d_query"), arg("d_key"), arg("d_value"),
               arg("work"), arg("threads"), arg("lanes") = 0);
}

}  // namespace lrp_fast
