#include "paths.hpp"

#include <limits>
#include <stdexcept>
#include <unordered_map>

#include "parallel.hpp"

namespace lrp_fast {
namespace {

// value * 2^(512 scale), value in [2^-256, 2^256): a product of many small shares, without underflow and with the same
// rounding as plain doubles. No path at all is 0 at the lowest scale.
struct Worth {
    double value = 0;
    std::int64_t scale = std::numeric_limits<std::int64_t>::min();
};

bool operator>(const Worth& a, const Worth& b) { return a.scale != b.scale ? a.scale > b.scale : a.value > b.value; }

inline Worth times(Worth worth, double share) {
    if (!(worth.value > 0 && share > 0)) return {};
    if (share < 0x1p-512) {
        share *= 0x1p512;
        --worth.scale;
    }
    worth.value *= share;
    while (worth.value < 0x1p-256) {
        worth.value *= 0x1p512;
        --worth.scale;
    }
    return worth;
}

// Magnitude of all that flows into a target, kept or not.
template <class T>
double total_into(const Graph<T>& graph, std::int64_t layer, std::int64_t target, std::int64_t row) {
    return dropped_mass(graph, row) + kept_mass(graph, layer, target, row);
}

// The best path from any input to every node.
template <class T>
std::vector<Worth> best_to_every_node(const Graph<T>& graph) {
    std::vector<Worth> best((graph.layers + 1) * graph.tokens);
    std::fill_n(best.begin(), graph.tokens, Worth{1, 0});
    for (std::int64_t layer = 0; layer < graph.layers; ++layer) {
        const Worth* below = best.data() + layer * graph.tokens;
        Worth* above = best.data() + (layer + 1) * graph.tokens;
        const std::vector<Chunk> chunks = chunks_of(graph, layer, 16);
        parallel_for(chunks.size(), [&](std::int64_t c) {
            each_target(graph, chunks[c], [&](std::int64_t target, std::int64_t row) {
                const double total = total_into(graph, layer, target, row);
                Worth found;
                each_edge(graph, layer, target, row, [&](std::int64_t source, double weight) {
                    const Worth worth = times(below[source], std::abs(weight) / total);
                    if (worth > found) found = worth;
                });
                above[target] = found;
            });
        });
    }
    return best;
}

// The rank-th best path to `source`, one edge longer.
struct Candidate {
    Worth worth;
    double share;
    std::int64_t source;
    std::int64_t rank;
};

// Heaps keep the best on top: the one that no other goes before.
bool goes_after(const Candidate& a, const Candidate& b) {
    if (a.worth > b.worth) return false;
    if (b.worth > a.worth) return true;
    return a.source != b.source ? a.source > b.source : a.rank > b.rank;
}

Candidate pop(std::vector<Candidate>& heap) {
    std::pop_heap(heap.begin(), heap.end(), goes_after);
    const Candidate best = heap.back();
    heap.pop_back();
    return best;
}

void push(std::vector<Candidate>& heap, const Candidate& candidate) {
    heap.push_back(candidate);
    std::push_heap(heap.begin(), heap.end(), goes_after);
}

// Paths to each node in order, as far as they were asked for: the recursive enumeration algorithm (Jimenez and Marzal
// 1999), where the next path to a node is the best of what leads to it, and the one taken is followed by the next path
// to the same source. In a layered graph the recursion is as deep as there are layers; here it is a loop.
template <class T>
class Enumeration {
public:
    Enumeration(const Graph<T>& graph, std::int64_t k) : graph_(graph), k_(k), best_(best_to_every_node(graph)) {}

    Worth best(std::int64_t layer, std::int64_t position) const { return best_[layer * graph_.tokens + position]; }

    // Whether there are more than `rank` paths to the node. Ranks are asked for from 0 up, one by one.
    bool has(std::int64_t layer, std::int64_t position, std::int64_t rank) {
        struct Question {
            std::int64_t layer, position, rank;
        };
        std::vector<Question> stack{{layer, position, rank}};
        while (!stack.empty()) {
            const Question now = stack.back();
            if (now.layer == 0 || known(now.layer, now.position, now.rank)) {
                stack.pop_back();
                continue;
            }
            Node& node = at(now.layer, now.position);
            if (node.exhausted) {
                stack.pop_back();
                continue;
            }
            const Candidate last = node.found.back();
            if (!node.asked) {
                node.asked = true;
                stack.push_back({now.layer - 1, last.source, last.rank + 1});
                continue;
            }
            node.asked = false;
            if (known(now.layer - 1, last.source, last.rank + 1)) {
                const Worth worth = times(worth_of(now.layer - 1, last.source, last.rank + 1), last.share);
                if (worth.value > 0) push(node.heap, {worth, last.share, last.source, last.rank + 1});
            }
            if (node.heap.empty()) {
                node.exhausted = true;
            } else {
                node.found.push_back(pop(node.heap));
            }
        }
        return known(layer, position, rank);
    }

    Worth worth_of(std::int64_t layer, std::int64_t position, std::int64_t rank) {
        return layer == 0 ? Worth{1, 0} : path(layer, position, rank).worth;
    }

    // Writes the positions of a path that has() found, its node's included.
    void trace(std::int64_t layer, std::int64_t position, std::int64_t rank, std::int32_t* positions) {
        for (; layer > 0; --layer) {
            positions[layer] = static_cast<std::int32_t>(position);
            const Candidate& last = path(layer, position, rank);
            position = last.source;
            rank = last.rank;
        }
        positions[0] = static_cast<std::int32_t>(position);
    }

private:
    struct Node {
        std::vector<Candidate> found;
        std::vector<Candidate> heap;
        bool asked = false;
        bool exhausted = false;
    };

    const Candidate& path(std::int64_t layer, std::int64_t position, std::int64_t rank) {
        const std::vector<Candidate>& found = at(layer, position).found;
        if (rank >= static_cast<std::int64_t>(found.size())) {
            throw std::runtime_error("the graph was changed while its paths were looked for");
        }
        return found[rank];
    }

    bool known(std::int64_t layer, std::int64_t position, std::int64_t rank) {
        if (layer == 0) return rank == 0;
        return rank < static_cast<std::int64_t>(at(layer, position).found.size());
    }

    // The node, with its best path found. Nobody asks for nodes that no input reaches.
    Node& at(std::int64_t layer, std::int64_t position) {
        const auto [place, is_new] = nodes_.try_emplace(layer * graph_.tokens + position);
        Node& node = place->second;
        if (!is_new) return node;
        std::vector<Candidate> heap;
        each_target(graph_, Chunk{layer - 1, position, position + 1}, [&](std::int64_t target, std::int64_t row) {
            const double total = total_into(graph_, layer - 1, target, row);
            each_edge(graph_, layer - 1, target, row, [&](std::int64_t source, double weight) {
                const double share = std::abs(weight) / total;
                const Worth worth = times(best(layer - 1, source), share);
                if (worth.value > 0) heap.push_back({worth, share, source, 0});
            });
        });
        if (static_cast<std::int64_t>(heap.size()) > k_) {  // the others are too late for the k best
            std::nth_element(heap.begin(), heap.begin() + k_, heap.end(),
                             [](const Candidate& a, const Candidate& b) { return goes_after(b, a); });
            heap.resize(k_);
            heap.shrink_to_fit();
        }
        std::make_heap(heap.begin(), heap.end(), goes_after);
        node.exhausted = heap.empty();
        if (!heap.empty()) node.found.push_back(pop(heap));
        node.heap = std::move(heap);
        return node;
    }

    const Graph<T>& graph_;
    const std::int64_t k_;
    const std::vector<Worth> best_;
    std::unordered_map<std::int64_t, Node> nodes_;  // its nodes stay where they are when others are added
};

}  // namespace

template <class T>
Paths best_paths(const Graph<T>& graph, const std::vector<Target>& targets, std::int64_t k) {
    Enumeration<T> paths(graph, k);
    std::vector<Candidate> heap;  // `source` is the index of a target here
    for (std::size_t i = 0; i < targets.size(); ++i) {
        const Worth worth = times(paths.best(targets[i].layer, targets[i].position), targets[i].share);
        if (worth.value > 0) heap.push_back({worth, targets[i].share, static_cast<std::int64_t>(i), 0});
    }
    std::make_heap(heap.begin(), heap.end(), goes_after);

    Paths found;
    while (!heap.empty() && static_cast<std::int64_t>(found.shares.size()) < k) {
        const Candidate best = pop(heap);
        const Target& target = targets[best.source];
        const std::size_t offset = found.positions.size();
        const auto scale = static_cast<int>(std::max<std::int64_t>(best.worth.scale, -9));  // below, the share is 0
        found.shares.push_back(std::ldexp(best.worth.value, 512 * scale));
        found.targets.push_back(best.source);
        found.positions.resize(offset + graph.layers + 1, -1);
        paths.trace(target.layer, target.position, best.rank, found.positions.data() + offset);
        if (paths.has(target.layer, target.position, best.rank + 1)) {
            const Worth next = paths.worth_of(target.layer, target.position, best.rank + 1);
            push(heap, {times(next, best.share), best.share, best.source, best.rank + 1});
        }
    }
    return found;
}

template Paths best_paths(const Graph<float>&, const std::vector<Target>&, std::int64_t);
template Paths best_paths(const Graph<double>&, const std::vector<Target>&, std::int64_t);

}  // namespace lrp_fast
