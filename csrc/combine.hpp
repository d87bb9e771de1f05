#pragma once

#include <cstdint>
#include <vector>

#include "graph.hpp"

namespace lrp_fast {

template <class T>
struct Combined {
    std::vector<std::int64_t> row_offsets;
    std::vector<std::int32_t> rows;
    std::vector<std::int64_t> indptr;
    std::vector<std::int32_t> columns;
    std::vector<T> weights;
    std::vector<T> dropped;  // 2 for each row
};

// Edges a - b over the rows and columns of either, without those that come out as 0. What either dropped is unknown in
// the difference too: dropped is (a's positive - b's negative, a's negative - b's positive). Self edges are no part.
template <class T>
Combined<T> difference(const Graph<T>& a, const Graph<T>& b);

// Edges between groups: sums, in float64, over the edges between their members, without those that come out as 0, and
// sums of the dropped mass. Position i belongs to group groups[i], in 0 ... num_groups - 1. Self edges are no part.
template <class T>
Combined<T> group(const Graph<T>& graph, const std::int32_t* groups, std::int64_t num_groups);

}  // namespace lrp_fast
