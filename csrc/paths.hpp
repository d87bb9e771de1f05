#pragma once

#include <cstdint>
#include <vector>

#include "graph.hpp"

namespace lrp_fast {

struct Target {
    std::int64_t layer;
    std::int64_t position;
    double share;  // above 0: what a path is worth where it ends
};

struct Paths {
    std::vector<double> shares;           // from the largest down
    std::vector<std::int64_t> targets;    // index of the target where the path ends
    std::vector<std::int32_t> positions;  // (layers + 1) for each path, from the inputs up; -1 above its target
};

// The k best paths from any input to any target, or all of them where there are fewer. A path is worth the share of
// its target times, for each of its edges, |weight| / (the sum of |weight| over the edges into the same node, and of
// what was dropped there), multiplied from the inputs up. Equal ones go by the lower target index, then by the lower
// position in the layer below, then by the order of what leads to it.
template <class T>
Paths best_paths(const Graph<T>& graph, const std::vector<Target>& targets, std::int64_t k);

}  // namespace lrp_fast
