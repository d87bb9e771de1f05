#pragma once

#include <cstdint>
#include <vector>

#include "graph.hpp"

namespace lrp_fast {

struct Influence {
    std::vector<double> nodes;    // (layers + 1) x tokens
    std::vector<double> factors;  // layers x tokens: |weight| * factor is the influence of an edge into the target
};

// The influence of every node on where `start`, (layers + 1) x tokens, is not 0:
//
//     influence(l, i) = sum_j (influence + start)(l + 1, j) * |w_ji| / total_j
//
// total_j sums |w| over the edges into j, with count_dropped the dropped mass as well. With `signs`, (layers + 1) x
// tokens, the weights keep their signs relative to the sign of the target's own relevance, sign(0) = +1. With `mask`,
// (layers + 1) x tokens, only edges between nodes of the mask count.
template <class T>
Influence influence(const Graph<T>& graph, const double* start, const T* signs, const std::uint8_t* mask,
                    bool count_dropped);

}  // namespace lrp_fast
