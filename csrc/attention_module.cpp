// The Python face of attention.cpp, edges.cpp and masses.cpp: checks the arguments, lets go of the interpreter lock, calls.

#include "attention_module.hpp"

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "arguments.hpp"
#include "attention.hpp"
#include "edges.hpp"
#include "masses.hpp"

namespace lrp_fast {
namespace {

Tokens<const float> read(const py::object& object, const std::string& name, const Shape& shape) {
    const auto array = dense_array_of(object, name, 3, &shape);
    return {array.data(), array.strides(0) / 4, array.strides(1) / 4};
}

Tokens<float> written(const py::object& object, const std::string& name, const Shape& shape) {
    auto array = dense_array_of(object, name, 3, &shape);
    return {array.mutable_data(), array.strides(0) / 4, array.strides(1) / 4};
}

const float* rows(const py::object& object, const std::string& name, const Shape& shape) {
    return object.is_none() ? nullptr : shaped_array_of<float>(object, name, shape).data();
}

// The shape of queries and keys that fit each other, for `lanes`.
AttentionShape shape_of(const py::object& query, const py::object& key, double scale, const py::object& behind,
                        const py::object& ahead, bool scores, std::int64_t lanes) {
    const auto queries = dense_array_of(query, "query", 3), keys = dense_array_of(key, "key", 3);
    constexpr std::int64_t most = std::int64_t{1} << 40;  // so that no sum of a few overflows
    const AttentionShape shape{queries.shape(0), keys.shape(0), queries.shape(1), keys.shape(1), queries.shape(2),
                               static_cast<float>(scale), std::min(count(behind, "behind"), most),
                               std::min(count(ahead, "ahead"), most), scores};
    if (shape.key_heads < 1 || shape.heads < 1 || shape.heads % shape.key_heads || shape.queries < 1 ||
        shape.queries > shape.keys) {
        throw py::value_error("the heads of queries must be a multiple of those of keys, and the queries 1 to all keys");
    }
    if (shape.keys > std::numeric_limits<std::int32_t>::max()) throw py::value_error("there are too many keys");
    if (!attention_backward_serves(shape.features, lanes)) {
        throw py::value_error("the features must be a multiple of 16, up to 256, and the processor have AVX2");
    }
    return shape;
}

Shape queries_of(const AttentionShape& shape) { return {shape.heads, shape.queries, shape.features}; }
Shape keys_of(const AttentionShape& shape) { return {shape.key_heads, shape.keys, shape.features}; }

const std::uint8_t* tiles_of(const py::object& tiles, const AttentionShape& shape) {
    if (tiles.is_none()) return nullptr;
    const Shape of{shape.heads, attention_tiles(shape.queries), attention_tiles(shape.keys)};
    return shaped_array_of<std::uint8_t>(tiles, "tiles", of).data();
}

float* room_of(const py::object& work, std::int64_t size) {
    return shaped_array_of<float>(work, "work", {size}).mutable_data();
}

double backward(const py::object& g, const py::object& query, const py::object& key, const py::object& value,
                const py::object& out, const py::object& lse, const py::object& norm, const py::object& tiles,
                double scale, const py::object& behind, const py::object& ahead, const py::object& d_query,
                const py::object& d_key, const py::object& d_value, const py::object& work, const py::object& threads,
                const py::object& lanes) {
    const std::int64_t width = count(lanes, "lanes");
    const AttentionShape shape = shape_of(query, key, scale, behind, ahead, !d_query.is_none(), width);
    if (d_query.is_none() != d_key.is_none() || lse.is_none()) {
        throw py::value_error("only norm, tiles, and d_query with d_key may be None");
    }
    const Shape of_queries = queries_of(shape), of_keys = keys_of(shape), of_rows{shape.heads, shape.queries};
    const AttentionGiven given{read(g, "g", of_queries),      read(query, "query", of_queries),
                               read(key, "key", of_keys),     read(value, "value", of_keys),
                               read(out, "out", of_queries),  rows(lse, "lse", of_rows),
                               rows(norm, "norm", of_rows),   tiles_of(tiles, shape)};
    AttentionGradients gradients{{}, {}, written(d_value, "d_value", of_keys)};
    if (shape.scores) {
        gradients.query = written(d_query, "d_query", of_queries);
        gradients.key = written(d_key, "d_key", of_keys);
    }
    float* const room = room_of(work, attention_backward_floats(shape));
    const int on = threads_of(threads);
    const py::gil_scoped_release unlocked;
    return attention_backward(shape, given, gradients, room, on, width);
}

// What both forms of edges take.
struct EdgesCall {
    AttentionShape shape;
    std::vector<std::int64_t> rows;  // a copy: what was checked may be written to while other threads run
    EdgesGiven given;
    float* work;
    int threads;
    std::int64_t lanes;
};

EdgesCall edges_call(const py::dict& all) {
    const auto of = [&](const char* name) -> py::object { return all[name]; };
    const std::int64_t lanes = all.contains("lanes") ? count(of("lanes"), "lanes") : 0;
    const AttentionShape shape = shape_of(of("query"), of("key"), of("scale").cast<double>(), of("behind"),
                                          of("ahead"), true, lanes);
    const Shape of_queries = queries_of(shape), of_keys = keys_of(shape);
    const auto tokens = [&](const char* name, const Shape& like) { return read(of(name), name, like); };
    const auto part = [&](const char* name) {
        return of(name).is_none() ? Tokens<const float>{nullptr, 0, 0} : tokens(name, of_keys);
    };
    const auto chosen = array_of<std::int64_t>(of("rows"), "rows", 1);
    std::vector<std::int64_t> own(chosen.data(), chosen.data() + chosen.size());
    const EdgesGiven given{tokens("g", of_queries), tokens("out", of_queries), tokens("query", of_queries),
                           tokens("key", of_keys),  tokens("value", of_keys),  part("key_part"),
                           part("value_part"),      rows(of("lse"), "lse", {shape.heads, shape.queries}),
                           tiles_of(of("tiles"), shape), of("share").cast<float>(), of("ratio").cast<float>(),
                           own.data(),              chosen.size(),     all.contains("packed")};
    if (!given.lse) throw py::value_error("only key_part, value_part and tiles may be None");
    for (std::int64_t r = 0; r < given.num_rows; ++r) {
        if (given.rows[r] < (r ? given.rows[r - 1] + 1 : 0) || given.rows[r] >= shape.queries) {
            throw py::value_error("rows must be queries, in ascending order");
        }
    }
    const std::int64_t size = attention_edges_floats(shape, given.key_part.data, given.value_part.data);
    return {shape, std::move(own), given, room_of(of("work"), size), threads_of(of("threads")), lanes};
}

void edges(const py::dict& given, const py::object& low, const py::object& high, const py::object& edges) {
    const EdgesCall call = edges_call(given);
    const AttentionShape& shape = call.shape;
    const std::int64_t first = count(low, "low"), end = count(high, "high"), num_rows = call.given.num_rows;
    if (first > end || end > shape.keys) throw py::value_error("low and high must be keys");
    for (const std::int64_t row : {std::int64_t{0}, num_rows - 1}) {
        if (!num_rows) break;
        const std::int64_t position = call.given.rows[row] + shape.keys - shape.queries;
        if (std::max<std::int64_t>(0, position - shape.behind + 1) < first ||
            std::min(shape.keys, position + shape.ahead) > end) {
            throw py::value_error("low and high must hold all keys that the rows read");
        }
    }
    float* const to = shaped_array_of<float>(edges, "edges", {num_rows, end - first}).mutable_data();
    const py::gil_scoped_release unlocked;
    attention_edges(shape, call.given, first, end, to, call.work, call.threads, call.lanes);
}

void strongest(const py::dict& given, const py::object& columns, const py::object& weights, const py::object& dropped) {
    const EdgesCall call = edges_call(given);
    const py::ssize_t num_rows = call.given.num_rows, k = array_of<float>(weights, "weights", 2).shape(1);
    float* const weight = shaped_array_of<float>(weights, "weights", {num_rows, k}).mutable_data();
    auto* const column = shaped_array_of<std::int32_t>(columns, "columns", {num_rows, k}).mutable_data();
    float* const others = shaped_array_of<float>(dropped, "dropped", {num_rows, 2}).mutable_data();
    const py::gil_scoped_release unlocked;
    attention_edges_strongest(call.shape, call.given, k, column, weight, others, call.work, call.threads, call.lanes);
}

void masses(const py::object& query, const py::object& key, const py::object& lse, const py::object& drawn, double scale,
            const py::object& behind, const py::object& ahead, const py::object& found, const py::object& work,
            const py::object& threads, const py::object& lanes) {
    const std::int64_t width = count(lanes, "lanes");
    const AttentionShape shape = shape_of(query, key, scale, behind, ahead, true, width);
    const std::int64_t of_queries = attention_tiles(shape.queries), of_keys = attention_tiles(shape.keys);
    const auto chosen = shaped_array_of<std::int64_t>(drawn, "drawn", {shape.heads, of_queries, kDrawn});
    const std::vector<std::int64_t> own(chosen.data(), chosen.data() + chosen.size());  // as of the edges' rows
    if (std::any_of(own.begin(), own.end(), [&](auto one) { return one < 0 || one >= shape.queries; })) {
        throw py::value_error("drawn must be queries");
    }
    const MassesGiven given{read(query, "query", queries_of(shape)), read(key, "key", keys_of(shape)),
                            shaped_array_of<float>(lse, "lse", {shape.heads, shape.queries}).data(), own.data()};
    float* const to = shaped_array_of<float>(found, "masses", {shape.heads, of_queries, of_keys}).mutable_data();
    float* const room = room_of(work, attention_masses_floats(shape));
    const int on = threads_of(threads);
    const py::gil_scoped_release unlocked;
    attention_masses(shape, given, to, room, on, width);
}

std::int64_t masses_floats(const py::object& key_heads, const py::object& keys, const py::object& features) {
    return attention_masses_floats({1, count(key_heads, "key_heads"), 1, count(keys, "keys"),
                                    count(features, "features"), 1, 1, 1, true});
}

std::int64_t edges_floats(const py::object& key_heads, const py::object& keys, const py::object& features,
                          bool key_part, bool value_part) {
    return attention_edges_floats({1, count(key_heads, "key_heads"), 1, count(keys, "keys"),
                                   count(features, "features"), 1, 1, 1, true}, key_part, value_part);
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
#ifdef _OPENMP
    module.attr("has_openmp") = true;
#else
    module.attr("has_openmp") = false;
#endif
    module.def("attention_edges_floats", &edges_floats, "How many floats the edges take to work in.", arg("key_heads"),
               arg("keys"), arg("features"), arg("key_part"), arg("value_part"));
    module.def("attention_edges", &edges,
               R"doc(Writes the edges of some queries to (R, high - low) float32, from keys low ... high - 1.

``given`` holds what `attention_backward` takes, ``key_part`` and ``value_part`` (None: key and value), ``share`` and
``ratio`` (of the values, and of the scores in units of that), and ``rows`` (R,) int64, ascending; ``packed`` where
``work`` is as a call with the same keys and values left it.)doc",
               arg("given"), arg("low"), arg("high"), arg("edges"));
    module.def("attention_edges_strongest", &strongest,
               R"doc(Of each query the k strongest edges, and the sums of the positive and of the negative others.

Writes to ``columns`` (R, k) int32, ascending, ``weights`` (R, k) float32, 0 where there are fewer, and ``dropped`` (R, 2).
Of equal edges those with the lower key are chosen. ``given``: as `attention_edges` takes it.)doc",
               arg("given"), arg("columns"), arg("weights"), arg("dropped"));
    module.def("attention_masses_floats", &masses_floats, "How many floats `attention_masses` takes to work in.",
               arg("key_heads"), arg("keys"), arg("features"));
    module.def("attention_masses", &masses,
               R"doc(The sums of the weights of a few queries by tiles of keys, (H, tiles of T, tiles of S) float32.

``drawn`` is (H, tiles of T, 8) int64, which queries are those of each tile; the others are as in `attention_backward`.)doc",
               arg("query"), arg("key"), arg("lse"), arg("drawn"), arg("scale"), arg("behind"), arg("ahead"),
               arg("masses"), arg("work"), arg("threads"), arg("lanes") = 0);
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
