#include "graph.hpp"

#include <stdexcept>
#include <string>

#include "parallel.hpp"

namespace lrp_fast {
namespace {

std::string at(std::int64_t index) { return " at index " + std::to_string(index); }

void check_offsets(const std::int64_t* offsets, std::int64_t n, std::int64_t total, const std::string& name) {
    if (offsets[0] != 0) throw std::invalid_argument(name + " must begin with 0, not " + std::to_string(offsets[0]));
    for (std::int64_t i = 0; i < n; ++i) {
        if (offsets[i + 1] < offsets[i]) throw std::invalid_argument(name + " must not descend, and does" + at(i + 1));
    }
    if (offsets[n] != total) {
        throw std::invalid_argument(name + " must end with " + std::to_string(total) + ", what it counts, not " +
                                    std::to_string(offsets[n]));
    }
}

// The first of positions[begin ... end - 1] that is out of range or not above the one before it; end if there is none.
std::int64_t first_disorder(const std::int32_t* positions, std::int64_t begin, std::int64_t end, std::int64_t tokens) {
    std::int64_t before = -1;
    for (std::int64_t i = begin; i < end; ++i) {
        if (positions[i] <= before || positions[i] >= tokens) return i;
        before = positions[i];
    }
    return end;
}

[[noreturn]] void reject_position(const std::int32_t* positions, std::int64_t index, std::int64_t tokens,
                                  const std::string& name, const std::string& within) {
    const std::int64_t position = positions[index];
    if (position < 0 || position >= tokens) {
        throw std::invalid_argument(name + " holds " + std::to_string(position) + at(index) + ", outside 0 to " +
                                    std::to_string(tokens - 1));
    }
    throw std::invalid_argument(name + " must ascend within a " + within + ", and does not" + at(index));
}

// The work over n items in pieces, each of which stops at the first item that ok() refuses; the lowest refused, or n.
template <class Ok>
std::int64_t first_refused(std::int64_t n, const Ok& ok) {
    constexpr std::int64_t piece = 1 << 16;
    const std::int64_t pieces = (n + piece - 1) / piece;
    std::vector<std::int64_t> found(static_cast<std::size_t>(pieces), n);
    parallel_for(pieces, [&](std::int64_t i) {
        const std::int64_t end = std::min(n, (i + 1) * piece);
        for (std::int64_t item = i * piece; item < end; ++item) {
            if (!ok(item)) {
                found[i] = item;
                break;
            }
        }
    });
    return pieces == 0 ? n : *std::min_element(found.begin(), found.end());
}

template <class T>
void check_finite(const T* values, std::int64_t n, const std::string& name) {
    const std::int64_t bad = first_refused(n, [&](std::int64_t i) { return std::isfinite(values[i]); });
    if (bad < n) throw std::invalid_argument(name + " must be finite, and is not" + at(bad));
}

}  // namespace

template <class T>
void check(const Graph<T>& graph, bool values) {
    check_offsets(graph.row_offsets.data(), graph.layers, graph.num_rows, "row_offsets");
    check_offsets(graph.indptr, graph.num_rows, graph.num_edges, "indptr");
    for (std::int64_t layer = 0; layer < graph.layers; ++layer) {
        const std::int64_t end = graph.row_offsets[layer + 1];
        const std::int64_t bad = first_disorder(graph.rows, graph.row_offsets[layer], end, graph.tokens);
        if (bad < end) reject_position(graph.rows, bad, graph.tokens, "rows", "transition");
    }
    const std::int64_t bad = first_refused(graph.num_rows, [&](std::int64_t row) {
        const Range range = edges_of(graph, row);
        return first_disorder(graph.columns, range.begin, range.end, graph.tokens) == range.end;
    });
    if (bad < graph.num_rows) {
        const Range range = edges_of(graph, bad);
        const std::int64_t edge = first_disorder(graph.columns, range.begin, range.end, graph.tokens);
        reject_position(graph.columns, edge, graph.tokens, "columns", "row");
    }
    if (!values) return;
    check_finite(graph.weights, graph.num_edges, "weights");
    check_finite(graph.self_edges, graph.layers * graph.tokens, "self_edges");
    check_finite(graph.dropped, 2 * graph.num_rows, "dropped");
    for (std::int64_t row = 0; row < graph.num_rows; ++row) {
        if (graph.dropped[2 * row] < 0 || graph.dropped[2 * row + 1] > 0) {
            throw std::invalid_argument("dropped must hold a positive and a negative sum, and does not in row " +
                                        std::to_string(row));
        }
    }
}

template void check(const Graph<float>&, bool);
template void check(const Graph<double>&, bool);

}  // namespace lrp_fast
