#include "graph_module.hpp"

#include <optional>
#include <stdexcept>

#include "arguments.hpp"
#include "combine.hpp"
#include "gini.hpp"
#include "graph.hpp"
#include "influence.hpp"
#include "paths.hpp"
#include "select.hpp"

namespace lrp_fast {
namespace {

// (row_offsets, rows, indptr, columns, weights, self_edges, dropped), the last three of one floating-point type.
template <class T>
Graph<T> read(const py::tuple& arrays) {
    const auto offsets = array_of<std::int64_t>(arrays[0], "row_offsets", 1);
    const auto rows = array_of<std::int32_t>(arrays[1], "rows", 1);
    const auto columns = array_of<std::int32_t>(arrays[3], "columns", 1);
    const auto self_edges = array_of<T>(arrays[5], "self_edges", 2);
    if (offsets.size() < 2) throw py::value_error("row_offsets must have at least 2 entries: a graph has a transition");
    if (self_edges.shape(0) != offsets.size() - 1 || self_edges.shape(1) < 1 ||
        self_edges.shape(1) > std::numeric_limits<std::int32_t>::max()) {
        throw py::value_error("self_edges must be (" + std::to_string(offsets.size() - 1) +
                              ", N), a row for each transition, with 1 <= N < 2**31, not (" +
                              std::to_string(self_edges.shape(0)) + ", " + std::to_string(self_edges.shape(1)) + ")");
    }
    const auto indptr = shaped_array_of<std::int64_t>(arrays[2], "indptr", {rows.size() + 1});
    const auto weights = shaped_array_of<T>(arrays[4], "weights", {columns.size()});
    const auto dropped = shaped_array_of<T>(arrays[6], "dropped", {rows.size(), 2});
    return {offsets.size() - 1,
            self_edges.shape(1),
            rows.size(),
            columns.size(),
            std::vector<std::int64_t>(offsets.data(), offsets.data() + offsets.size()),
            rows.data(),
            indptr.data(),
            columns.data(),
            weights.data(),
            self_edges.data(),
            dropped.data()};
}

// f(graph) with the checked graph, of float or double as its weights are.
template <class F>
auto with_graph(const py::tuple& arrays, const F& f, bool values = false) {
    if (arrays.size() != 7) throw py::value_error("arrays must be 7 arrays, not " + std::to_string(arrays.size()));
    const auto checked = [&](const auto& graph) {
        {
            py::gil_scoped_release unlocked;
            check(graph, values);
        }
        return f(graph);
    };
    if (py::isinstance<py::array_t<double>>(arrays[4])) return checked(read<double>(arrays));
    return checked(read<float>(arrays));
}

template <class F>
auto unlocked(const F& f) {
    py::gil_scoped_release released;
    return f();
}

template <class T>
std::vector<py::ssize_t> nodes_shape(const Graph<T>& graph) {
    return {graph.layers + 1, graph.tokens};
}

// A boolean array over nodes, copied, so that nobody changes it meanwhile.
template <class T>
std::vector<std::uint8_t> node_mask(const Graph<T>& graph, const py::object& object, const std::string& name) {
    const auto mask = shaped_array_of<bool>(object, name, nodes_shape(graph));
    return {mask.data(), mask.data() + mask.size()};
}

template <class T>
std::optional<std::vector<std::uint8_t>> optional_mask(const Graph<T>& graph, const py::object& object) {
    if (object.is_none()) return std::nullopt;
    return node_mask(graph, object, "mask");
}

const std::uint8_t* pointer(const std::optional<std::vector<std::uint8_t>>& mask) {
    return mask ? mask->data() : nullptr;
}

py::array_t<bool> to_bools(const std::vector<std::uint8_t>& flags, const std::vector<py::ssize_t>& shape) {
    py::array_t<bool> array(shape);
    std::copy(flags.begin(), flags.end(), array.mutable_data());
    return array;
}

void check_graph(const py::tuple& arrays) {
    with_graph(arrays, [](const auto&) {}, true);
}

py::tuple influence_of(const py::tuple& arrays, const py::object& start, const py::object& signs,
                       const py::object& mask, bool count_dropped) {
    return with_graph(arrays, [&](const auto& graph) -> py::tuple {
        using T = std::decay_t<decltype(*graph.weights)>;
        const auto starts = shaped_array_of<double>(start, "start", nodes_shape(graph));
        const double* start_data = starts.data();
        py::array_t<T> sign_array;
        if (!signs.is_none()) sign_array = shaped_array_of<T>(signs, "signs", nodes_shape(graph));
        const T* sign_data = signs.is_none() ? nullptr : sign_array.data();
        const auto flags = optional_mask(graph, mask);
        Influence found =
            unlocked([&] { return influence(graph, start_data, sign_data, pointer(flags), count_dropped); });
        return py::make_tuple(to_numpy(std::move(found.nodes), nodes_shape(graph)),
                              to_numpy(std::move(found.factors), {graph.layers, graph.tokens}));
    });
}

double mass_threshold_of(const py::object& scores, double share) {
    const auto array = array_of<double>(scores, "scores", 1);
    const double* data = array.data();
    const std::int64_t n = array.size();
    return unlocked([&] { return mass_threshold(data, n, share); });
}

py::array_t<double> mass_thresholds_of(const py::tuple& arrays, double share) {
    return with_graph(arrays, [&](const auto& graph) {
        return to_numpy(unlocked([&] { return mass_thresholds(graph, share); }));
    });
}

double edge_threshold_of(const py::tuple& arrays, const py::object& factors, const py::object& mask, double share) {
    return with_graph(arrays, [&](const auto& graph) {
        const auto array = shaped_array_of<double>(factors, "factors", {graph.layers, graph.tokens});
        const double* data = array.data();
        const auto flags = optional_mask(graph, mask);
        return unlocked([&] { return edge_threshold(graph, data, pointer(flags), share); });
    });
}

py::tuple keep_edges(const py::tuple& arrays, const py::object& dropped_self, const py::object& thresholds, bool above,
                     const py::object& factors, const py::object& mask) {
    return with_graph(arrays, [&](const auto& graph) -> py::tuple {
        using T = std::decay_t<decltype(*graph.weights)>;
        const auto limits = shaped_array_of<double>(thresholds, "thresholds", {graph.layers});
        const auto lost = shaped_array_of<T>(dropped_self, "dropped_self", {graph.layers, 2});
        const std::vector<py::ssize_t> factor_shape{graph.layers, graph.tokens};
        py::array_t<double> factor_array;
        if (!factors.is_none()) factor_array = shaped_array_of<double>(factors, "factors", factor_shape);
        const double* factor_data = factors.is_none() ? nullptr : factor_array.data();
        const double* limit_data = limits.data();
        const T* lost_data = lost.data();
        const auto flags = optional_mask(graph, mask);
        Kept<T> kept = unlocked([&] { return keep(graph, limit_data, above, factor_data, pointer(flags), lost_data); });
        return py::make_tuple(to_numpy(std::move(kept.indptr)), to_numpy(std::move(kept.columns)),
                              to_numpy(std::move(kept.weights)),
                              to_numpy(std::move(kept.self_edges), {graph.layers, graph.tokens}),
                              to_numpy(std::move(kept.dropped), {graph.num_rows, 2}),
                              to_numpy(std::move(kept.dropped_self), {graph.layers, 2}));
    });
}

py::array_t<bool> reach_from(const py::tuple& arrays, const py::object& nodes, bool forward) {
    return with_graph(arrays, [&](const auto& graph) {
        const std::vector<std::uint8_t> flags = node_mask(graph, nodes, "nodes");
        return to_bools(unlocked([&] { return reach(graph, flags.data(), forward); }), nodes_shape(graph));
    });
}

py::tuple entries_of(const py::tuple& arrays, const py::object& layer) {
    return with_graph(arrays, [&](const auto& graph) -> py::tuple {
        const std::int64_t index = count(layer, "layer");
        if (index >= graph.layers) {
            throw py::value_error("layer must be below " + std::to_string(graph.layers) + ", and " +
                                  std::to_string(index) + " is not");
        }
        Entries found = unlocked([&] { return entries(graph, index); });
        return py::make_tuple(to_numpy(std::move(found.targets)), to_numpy(std::move(found.sources)),
                              to_numpy(std::move(found.weights)));
    });
}

py::tuple best_paths_of(const py::tuple& arrays, const py::object& layers, const py::object& positions,
                        const py::object& shares, const py::object& k) {
    return with_graph(arrays, [&](const auto& graph) -> py::tuple {
        const auto layer_array = array_of<std::int64_t>(layers, "layers", 1);
        const auto position_array = shaped_array_of<std::int64_t>(positions, "positions", {layer_array.size()});
        const auto share_array = shaped_array_of<double>(shares, "shares", {layer_array.size()});
        std::vector<Target> targets;
        for (py::ssize_t i = 0; i < layer_array.size(); ++i) {
            const Target target{layer_array.data()[i], position_array.data()[i], share_array.data()[i]};
            if (target.layer < 0 || target.layer > graph.layers || target.position < 0 ||
                target.position >= graph.tokens) {
                throw py::value_error("target (" + std::to_string(target.layer) + ", " +
                                      std::to_string(target.position) + ") is outside the graph");
            }
            targets.push_back(target);
        }
        const std::int64_t k_count = count(k, "k");
        Paths found = unlocked([&] { return best_paths(graph, targets, k_count); });
        const auto n = static_cast<py::ssize_t>(found.shares.size());
        return py::make_tuple(to_numpy(std::move(found.shares)), to_numpy(std::move(found.targets)),
                              to_numpy(std::move(found.positions), {n, graph.layers + 1}));
    });
}

template <class T>
py::tuple to_tuple(Combined<T>&& combined) {
    const auto num_rows = static_cast<py::ssize_t>(combined.rows.size());
    return py::make_tuple(to_numpy(std::move(combined.row_offsets)), to_numpy(std::move(combined.rows)),
                          to_numpy(std::move(combined.indptr)), to_numpy(std::move(combined.columns)),
                          to_numpy(std::move(combined.weights)), to_numpy(std::move(combined.dropped), {num_rows, 2}));
}

py::tuple difference_of(const py::tuple& first, const py::tuple& second) {
    return with_graph(first, [&](const auto& a) {
        return with_graph(second, [&](const auto& b) -> py::tuple {
            if constexpr (std::is_same_v<decltype(a), decltype(b)>) {
                if (a.layers != b.layers || a.tokens != b.tokens) {
                    throw py::value_error("a difference needs two graphs with the same layers and tokens");
                }
                return to_tuple(unlocked([&] { return difference(a, b); }));
            } else {
                throw py::type_error("a difference needs two graphs of the same dtype");
            }
        });
    });
}

py::tuple group_edges(const py::tuple& arrays, const py::object& groups, const py::object& num_groups) {
    return with_graph(arrays, [&](const auto& graph) {
        const auto array = shaped_array_of<std::int32_t>(groups, "groups", {graph.tokens});
        const std::vector<std::int32_t> copy(array.data(), array.data() + array.size());
        const std::int64_t n = count(num_groups, "num_groups");
        for (const std::int32_t one : copy) {
            if (one < 0 || one >= n) {
                throw py::value_error("groups holds " + std::to_string(one) + ", outside 0 to " +
                                      std::to_string(n - 1));
            }
        }
        return to_tuple(unlocked([&] { return group(graph, copy.data(), n); }));
    });
}

py::array_t<double> grouped_gini_of(const py::object& groups, const py::object& values, const py::object& num_groups) {
    const auto group_array = array_of<std::int32_t>(groups, "groups", 1);
    const auto value_array = shaped_array_of<double>(values, "values", {group_array.size()});
    const std::int64_t n = group_array.size(), bins = count(num_groups, "num_groups");
    const std::int32_t* group_data = group_array.data();
    const double* value_data = value_array.data();
    for (std::int64_t i = 0; i < n; ++i) {
        if (group_data[i] < 0 || group_data[i] >= bins) {
            throw py::value_error("groups holds " + std::to_string(group_data[i]) + ", outside 0 to " +
                                  std::to_string(bins - 1));
        }
    }
    return to_numpy(unlocked([&] { return grouped_gini(group_data, value_data, n, bins); }));
}

}  // namespace

void bind_graph(py::module_& module) {
    using py::arg;
    const auto def = [&](const char* name, auto function, const char* doc, auto... args) {
        module.def(name, function, doc, args...);
    };
    def("check_graph", &check_graph, "ValueError where the arrays of a graph do not fit each other.", arg("arrays"));
    def("influence", &influence_of, "Influence of every node on `start`, and the factor of every target.",
        arg("arrays"), arg("start"), arg("signs"), arg("mask"), arg("count_dropped"));
    def("mass_threshold", &mass_threshold_of, "The smallest of the largest scores that hold `share` of their sum.",
        arg("scores"), arg("share"));
    def("mass_thresholds", &mass_thresholds_of, "The same for |weight|, one for each transition.", arg("arrays"),
        arg("share"));
    def("edge_threshold", &edge_threshold_of, "The same for |weight| * factor over all transitions at once.",
        arg("arrays"), arg("factors"), arg("mask"), arg("share"));
    def("keep_edges", &keep_edges, "The graph with only the edges that reach a threshold, and what the others sum to.",
        arg("arrays"), arg("dropped_self"), arg("thresholds"), arg("above"), arg("factors"), arg("mask"));
    def("reach", &reach_from, "Nodes from which, or forward: to which, a path leads.", arg("arrays"), arg("nodes"),
        arg("forward"));
    def("entries", &entries_of, "The edges of a transition: targets, sources, weights.", arg("arrays"), arg("layer"));
    def("best_paths", &best_paths_of, "The k best paths from the inputs to the targets.", arg("arrays"), arg("layers"),
        arg("positions"), arg("shares"), arg("k"));
    def("difference", &difference_of, "Edges of the first graph minus those of the second.", arg("first"),
        arg("second"));
    def("grouped_gini", &grouped_gini_of, "The Gini coefficient of each group of values; NaN for an empty one.",
        arg("groups"), arg("values"), arg("num_groups"));
    def("group", &group_edges, "Edges between groups of positions.", arg("arrays"), arg("groups"), arg("num_groups"));
}

}  // namespace lrp_fast
