#include "graph.hpp"

#include <limits>
#include <numeric>
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

// Columns descend, or stay, only from one row to the next: it is enough to count where they do in all, and to look at
// the ends of each row. Then the edges are read once, without a branch.
template <class T>
void check_columns(const Graph<T>& graph) {
    constexpr std::int64_t piece = 1 << 16;
    const std::int32_t* columns = graph.columns;
    const std::int64_t pieces = (graph.num_edges + piece - 1) / piece;
    std::vector<std::int64_t> descents(pieces);
    parallel_for(pieces, [&](std::int64_t i) {
        const std::int64_t end = std::min(graph.num_edges, (i + 1) * piece);
        std::int32_t found = 0;
        for (std::int64_t edge = std::max<std::int64_t>(1, i * piece); edge < end; ++edge) {
            found += columns[edge] <= columns[edge - 1];
        }
        descents[i] = found;
    });
    constexpr std::int64_t rows_together = 1 << 13;
    std::vector<std::int64_t> between((graph.num_rows + rows_together - 1) / rows_together), outside(between.size());
    parallel_for(between.size(), [&](std::int64_t i) {
        const std::int64_t last = std::min(graph.num_rows, (i + 1) * rows_together);
        std::int64_t found_between = 0, found_outside = 0;
        for (std::int64_t row = i * rows_together; row < last; ++row) {
            const Range range = edges_of(graph, row);
            if (range.begin == range.end) continue;
            found_outside += columns[range.begin] < 0 || columns[range.end - 1] >= graph.tokens;
            found_between += range.begin > 0 && columns[range.begin] <= columns[range.begin - 1];
        }
        between[i] = found_between;
        outside[i] = found_outside;
    });
    const auto sum = [](const std::vector<std::int64_t>& counts) {
        return std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
    };
    if (sum(outside) == 0 && sum(descents) == sum(between)) return;
    for (std::int64_t row = 0; row < graph.num_rows; ++row) {
        const Range range = edges_of(graph, row);
        const std::int64_t bad = first_disorder(columns, range.begin, range.end, graph.tokens);
        if (bad < range.end) reject_position(columns, bad, graph.tokens, "columns", "row");
    }
}

template <class T>
void check_finite(const T* values, std::int64_t n, const std::string& name) {
    constexpr std::int64_t piece = 1 << 16;
    std::vector<std::int64_t> finite((n + piece - 1) / piece);
    parallel_for(finite.size(), [&](std::int64_t i) {
        const T* first = values + i * piece;
        const T* last = values + std::min(n, (i + 1) * piece);
        std::int32_t found = 0;
        for (const T* one = first; one < last; ++one) found += std::abs(*one) <= std::numeric_limits<T>::max();
        finite[i] = found;
    });
    if (std::accumulate(finite.begin(), finite.end(), std::int64_t{0}) == n) return;
    for (std::int64_t i = 0; i < n; ++i) {
        if (!std::isfinite(values[i])) throw std::invalid_argument(name + " must be finite, and is not" + at(i));
    }
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
    check_columns(graph);
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
