#pragma once

#include <cstdint>
#include <vector>

#include "graph.hpp"

namespace lrp_fast {

// The smallest score of the smallest set of largest scores that holds `share` of the sum of all. Scores equal to it are
// ties, and all kept. Infinity where no score is above 0: scores of 0 belong to no set.
double mass_threshold(const double* scores, std::int64_t n, double share);

// The same for |weight| over the edges of each transition: `layers` thresholds.
template <class T>
std::vector<double> mass_thresholds(const Graph<T>& graph, double share);

// The same over all edges at once, by |weight| * factors[layer, target], between nodes of the mask.
template <class T>
double edge_threshold(const Graph<T>& graph, const double* factors, const std::uint8_t* mask, double share);

// What changes when edges go; rows stay listed, because their dropped mass is to be known.
template <class T>
struct Kept {
    std::vector<std::int64_t> indptr;
    std::vector<std::int32_t> columns;
    std::vector<T> weights;
    std::vector<T> self_edges;
    std::vector<T> dropped;       // per listed row, self edges included
    std::vector<T> dropped_self;  // layers x 2, added to: self edges of targets that are not listed
};

// The graph with only the edges whose score, |weight| or |weight| * factors[layer, target], is at least
// thresholds[layer], or with `above` greater than it, and whose nodes are both in the mask, if there is one.
template <class T>
Kept<T> keep(const Graph<T>& graph, const double* thresholds, bool above, const double* factors,
             const std::uint8_t* mask, const T* dropped_self);

// Nodes from which a path leads to a node of `nodes`, (layers + 1) x tokens, those themselves included; or, forward,
// to which a path leads from one.
template <class T>
std::vector<std::uint8_t> reach(const Graph<T>& graph, const std::uint8_t* nodes, bool forward);

// The edges of one transition as (target, source, weight), by target, then source.
struct Entries {
    std::vector<std::int32_t> targets;
    std::vector<std::int32_t> sources;
    std::vector<double> weights;
};
template <class T>
Entries entries(const Graph<T>& graph, std::int64_t layer);

}  // namespace lrp_fast
