#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace lrp_fast {

// A layered graph as lrp_fast.Graph holds it. Transition l leads from layer l to layer l + 1. Its listed target rows
// are row_offsets[l] ... row_offsets[l + 1] - 1; row r belongs to position rows[r], and its edges are indptr[r] ...
// indptr[r + 1] - 1. Positions ascend within a transition, and columns within a row.
template <class T>
struct Graph {
    std::int64_t layers;
    std::int64_t tokens;
    std::int64_t num_rows;
    std::int64_t num_edges;
    std::vector<std::int64_t> row_offsets;  // layers + 1
    const std::int32_t* rows;               // num_rows
    const std::int64_t* indptr;             // num_rows + 1
    const std::int32_t* columns;            // num_edges
    const T* weights;                       // num_edges
    const T* self_edges;                    // layers x tokens
    const T* dropped;                       // num_rows x 2: the positive and the negative sum
};

// The arrays belong to Python. They are checked, but another thread may write to them afterwards: that may spoil an
// answer, and must not spoil memory. So what is read from them is kept in range again where it leads to an address.
struct Range {
    std::int64_t begin;
    std::int64_t end;
};
template <class T>
inline Range edges_of(const Graph<T>& graph, std::int64_t row) {
    const std::int64_t begin = std::clamp<std::int64_t>(graph.indptr[row], 0, graph.num_edges);
    return {begin, std::clamp(graph.indptr[row + 1], begin, graph.num_edges)};
}
template <class T>
inline bool is_position(const Graph<T>& graph, std::int64_t source) {
    return static_cast<std::uint64_t>(source) < static_cast<std::uint64_t>(graph.tokens);
}

// Throws std::invalid_argument, naming the place, unless every offset and position is in range and in order; with
// `values`, unless every weight and self edge is finite and the dropped sums have their signs as well.
template <class T>
void check(const Graph<T>& graph, bool values);

// Targets begin ... end - 1 of a transition: a piece of work.
struct Chunk {
    std::int64_t layer;
    std::int64_t begin;
    std::int64_t end;
};

// The targets of a transition in at most max_chunks pieces of about as many edges, but not many pieces for few edges.
template <class T>
std::vector<Chunk> chunks_of(const Graph<T>& graph, std::int64_t layer, std::int64_t max_chunks) {
    constexpr std::int64_t worthwhile = 1 << 15;
    const std::int64_t first = graph.row_offsets[layer], last = graph.row_offsets[layer + 1];
    const std::int64_t edges = std::clamp<std::int64_t>(graph.indptr[last] - graph.indptr[first], 0, graph.num_edges);
    const std::int64_t n = std::clamp<std::int64_t>((edges + graph.tokens) / worthwhile, 1, max_chunks);
    std::vector<Chunk> chunks;
    std::int64_t begin = 0;
    for (std::int64_t i = 1; i <= n; ++i) {
        const std::int64_t* found =
            std::lower_bound(graph.indptr + first, graph.indptr + last, graph.indptr[first] + edges / n * i);
        const std::int64_t row = found - graph.indptr;
        const std::int64_t end =
            i == n || row == last ? graph.tokens : std::min<std::int64_t>(graph.rows[row], graph.tokens);
        if (end > begin) chunks.push_back({layer, begin, end});
        begin = std::max(begin, end);
    }
    return chunks;
}

template <class T>
std::vector<Chunk> chunks_of_all(const Graph<T>& graph) {
    std::vector<Chunk> all;
    for (std::int64_t layer = 0; layer < graph.layers; ++layer) {
        const std::vector<Chunk> some = chunks_of(graph, layer, 16);
        all.insert(all.end(), some.begin(), some.end());
    }
    return all;
}

// f(target, row) for every target of the chunk; row is -1 where the target is not listed.
template <class T, class F>
inline void each_target(const Graph<T>& graph, const Chunk& chunk, F&& f) {
    const std::int64_t last = graph.row_offsets[chunk.layer + 1];
    std::int64_t row = std::lower_bound(graph.rows + graph.row_offsets[chunk.layer], graph.rows + last, chunk.begin) -
                       graph.rows;
    for (std::int64_t target = chunk.begin; target < chunk.end; ++target) {
        const bool listed = row < last && graph.rows[row] == target;
        f(target, listed ? row : -1);
        row += listed;
    }
}

// The stored edges into a target: those of other positions, before and behind its own, and the weight of its own edge,
// which is what is stored at its position and its self edge together.
struct Incoming {
    Range before;
    Range behind;
    double own;

    // f(range) for the two in turn. Measured: a loop over a list of them, laid out in memory for every row and empty
    // behind in a causal one, doubles the time of a sweep over rows of 15 edges.
    template <class F>
    void each_range(const F& f) const {
        f(before);
        if (behind.begin < behind.end) f(behind);
    }
};
template <class T>
inline Incoming incoming(const Graph<T>& graph, std::int64_t layer, std::int64_t target, std::int64_t row) {
    const double self = graph.self_edges[layer * graph.tokens + target];
    if (row < 0) return {{0, 0}, {0, 0}, self};
    const Range range = edges_of(graph, row);
    const std::int32_t* end = graph.columns + range.end;
    // In a causal model the target's own position is the last, if it is there at all.
    const bool is_within = range.begin < range.end && end[-1] >= target;
    const std::int64_t place =
        !is_within ? range.end
                   : (end[-1] == target ? range.end - 1
                                        : std::lower_bound(graph.columns + range.begin, end, target) - graph.columns);
    if (place == range.end || graph.columns[place] != target) return {range, {0, 0}, self};
    return {{range.begin, place}, {place + 1, range.end}, self + double(graph.weights[place])};
}

// f(source, weight) for every edge into a target, its own last; an edge of weight 0 is none.
template <class T, class F>
inline void each_edge(const Graph<T>& graph, std::int64_t layer, std::int64_t target, std::int64_t row, F&& f) {
    const Incoming edges = incoming(graph, layer, target, row);
    edges.each_range([&](Range range) {
        for (std::int64_t edge = range.begin; edge < range.end; ++edge) {
            const std::int64_t source = graph.columns[edge];
            const double weight = graph.weights[edge];
            if (weight != 0 && is_position(graph, source)) f(source, weight);
        }
    });
    if (edges.own != 0) f(target, edges.own);
}

// The sum of |weight| over the edges into a target.
template <class T>
inline double kept_mass(const Graph<T>& graph, std::int64_t layer, std::int64_t target, std::int64_t row) {
    const Incoming edges = incoming(graph, layer, target, row);
    double sums[4] = {std::abs(edges.own), 0, 0, 0};  // four chains of additions at once
    edges.each_range([&](Range range) {
        std::int64_t edge = range.begin;
        for (; edge + 4 <= range.end; edge += 4) {
            for (int i = 0; i < 4; ++i) sums[i] += std::abs(double(graph.weights[edge + i]));
        }
        for (; edge < range.end; ++edge) sums[0] += std::abs(double(graph.weights[edge]));
    });
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// The magnitude of everything that flows into a listed target and was not kept.
template <class T>
inline double dropped_mass(const Graph<T>& graph, std::int64_t row) {
    return row < 0 ? 0.0 : double(graph.dropped[2 * row]) - double(graph.dropped[2 * row + 1]);
}

}  // namespace lrp_fast
