#include "select.hpp"

#include <cstring>
#include <limits>

#include "parallel.hpp"

namespace lrp_fast {
namespace {

static_assert(std::numeric_limits<double>::is_iec559 && sizeof(double) == 8, "the keys below are IEEE binary64 bits");

// The bits of scores, which are not negative, order as the scores do. They are looked at from the top, a digit a pass.
constexpr int kDigits[] = {13, 13, 13, 12, 12};
constexpr std::uint64_t kNoSign = ~std::uint64_t{0} >> 1;

// As soon as the scores that share the digits found so far are no more than this, they are taken out.
constexpr std::int64_t kFew = 1 << 20;

inline std::uint64_t key_of(double score) {
    std::uint64_t key;
    std::memcpy(&key, &score, sizeof key);
    return key & kNoSign;
}

// The score where the sum over scores, from the largest down, reaches `share` of the whole. visit(f) calls f(score) for
// every score, in the same order each time it is called. O(n) whatever the scores are, and no array of all of them.
template <class Visit>
double threshold_of(const Visit& visit, double share) {
    struct Bin {
        double mass;
        std::int64_t count;
    };
    std::vector<Bin> bins;
    std::vector<double> few;
    bool taken = false;
    std::uint64_t prefix = 0;
    int shift = 63;
    double wanted = 0, above = 0;
    for (const int digit : kDigits) {
        shift -= digit;
        bins.assign(std::size_t{1} << digit, Bin{0, 0});
        const auto add = [&bins, prefix, shift, digit](double score) {
            const std::uint64_t key = key_of(score);
            if (key >> (shift + digit) != prefix) return;
            Bin& bin = bins[(key >> shift) & ((1u << digit) - 1)];
            bin.mass += score;
            ++bin.count;
        };
        if (taken) {
            std::for_each(few.begin(), few.end(), add);
        } else {
            visit(add);
        }
        if (shift + digit == 63) {
            double total = 0;
            for (const Bin& bin : bins) total += bin.mass;
            if (!(total > 0)) return std::numeric_limits<double>::infinity();
            wanted = share < 1 ? share * total : std::numeric_limits<double>::infinity();
        }
        // Where rounding, or share = 1, would let the walk run past the last bin that holds anything, it ends there.
        std::size_t found = 0;
        double above_found = above;
        for (std::size_t bin = bins.size(); bin-- > 0;) {
            if (bins[bin].mass == 0) continue;
            found = bin;
            above_found = above;
            above += bins[bin].mass;
            if (above >= wanted) break;
        }
        above = above_found;
        prefix = prefix << digit | found;
        if (!taken && shift > 0 && bins[found].count <= kFew) {
            taken = true;
            few.reserve(bins[found].count);
            visit([&few, prefix, shift](double score) {
                if (key_of(score) >> shift == prefix) few.push_back(score);
            });
        }
    }
    double threshold;
    std::memcpy(&threshold, &prefix, sizeof threshold);
    return threshold;
}

inline bool in(const std::uint8_t* mask, std::int64_t layer, std::int64_t tokens, std::int64_t source,
               std::int64_t target) {
    return !mask || (mask[layer * tokens + source] && mask[(layer + 1) * tokens + target]);
}

template <class T>
Chunk whole(const Graph<T>& graph, std::int64_t layer) {
    return {layer, 0, graph.tokens};
}

}  // namespace

double mass_threshold(const double* scores, std::int64_t n, double share) {
    return threshold_of([&](const auto& f) { std::for_each(scores, scores + n, f); }, share);
}

template <class T>
std::vector<double> mass_thresholds(const Graph<T>& graph, double share) {
    std::vector<double> thresholds(graph.layers);
    parallel_for(graph.layers, [&](std::int64_t layer) {
        thresholds[layer] = threshold_of(
            [&](const auto& f) {
                each_target(graph, whole(graph, layer), [&](std::int64_t target, std::int64_t row) {
                    each_edge(graph, layer, target, row, [&](std::int64_t, double weight) { f(std::abs(weight)); });
                });
            },
            share);
    });
    return thresholds;
}

template <class T>
double edge_threshold(const Graph<T>& graph, const double* factors, const std::uint8_t* mask, double share) {
    const std::int64_t tokens = graph.tokens;
    return threshold_of(
        [&](const auto& f) {
            for (std::int64_t layer = 0; layer < graph.layers; ++layer) {
                each_target(graph, whole(graph, layer), [&](std::int64_t target, std::int64_t row) {
                    const double factor = factors[layer * tokens + target];
                    if (factor == 0) return;
                    each_edge(graph, layer, target, row, [&](std::int64_t source, double weight) {
                        if (in(mask, layer, tokens, source, target)) f(std::abs(weight) * factor);
                    });
                });
            }
        },
        share);
}

template <class T>
Kept<T> keep(const Graph<T>& graph, const double* thresholds, bool above, const double* factors,
             const std::uint8_t* mask, const T* dropped_self) {
    const std::int64_t tokens = graph.tokens;
    const std::vector<Chunk> chunks = chunks_of_all(graph);
    const auto num_chunks = static_cast<std::int64_t>(chunks.size());
    const auto kept = [&](std::int64_t layer, std::int64_t source, std::int64_t target, double weight) {
        const double score = factors ? std::abs(weight) * factors[layer * tokens + target] : std::abs(weight);
        return (above ? score > thresholds[layer] : score >= thresholds[layer]) && score > 0 &&
               in(mask, layer, tokens, source, target);
    };

    Kept<T> result;
    result.indptr.resize(graph.num_rows + 1);
    result.self_edges.resize(graph.layers * tokens);
    result.dropped.resize(2 * graph.num_rows);
    std::vector<std::uint8_t> own_kept(graph.layers * tokens);
    std::vector<double> lost_self(2 * num_chunks);

    // How many edges each row keeps, and what the others sum to.
    parallel_for(num_chunks, [&](std::int64_t c) {
        const std::int64_t layer = chunks[c].layer;
        each_target(graph, chunks[c], [&](std::int64_t target, std::int64_t row) {
            double lost[2] = {row < 0 ? 0.0 : double(graph.dropped[2 * row]),
                              row < 0 ? 0.0 : double(graph.dropped[2 * row + 1])};
            std::int64_t count = 0;
            each_edge(graph, layer, target, row, [&](std::int64_t source, double weight) {
                if (!kept(layer, source, target, weight)) {
                    lost[weight < 0] += weight;
                } else if (source == target) {
                    own_kept[layer * tokens + target] = 1;
                    result.self_edges[layer * tokens + target] = graph.self_edges[layer * tokens + target];
                } else {
                    ++count;
                }
            });
            if (row < 0) {
                lost_self[2 * c] += lost[0];
                lost_self[2 * c + 1] += lost[1];
                return;
            }
            if (own_kept[layer * tokens + target]) {
                const Range range = edges_of(graph, row);
                count += std::binary_search(graph.columns + range.begin, graph.columns + range.end,
                                            static_cast<std::int32_t>(target));
            }
            result.indptr[row + 1] = count;
            result.dropped[2 * row] = static_cast<T>(lost[0]);
            result.dropped[2 * row + 1] = static_cast<T>(lost[1]);
        });
    });
    for (std::int64_t row = 0; row < graph.num_rows; ++row) result.indptr[row + 1] += result.indptr[row];
    std::vector<double> lost(dropped_self, dropped_self + 2 * graph.layers);
    for (std::int64_t c = 0; c < num_chunks; ++c) {
        lost[2 * chunks[c].layer] += lost_self[2 * c];
        lost[2 * chunks[c].layer + 1] += lost_self[2 * c + 1];
    }
    result.dropped_self.assign(lost.begin(), lost.end());

    result.columns.resize(result.indptr[graph.num_rows]);
    result.weights.resize(result.indptr[graph.num_rows]);
    parallel_for(num_chunks, [&](std::int64_t c) {
        const std::int64_t layer = chunks[c].layer;
        each_target(graph, chunks[c], [&](std::int64_t target, std::int64_t row) {
            if (row < 0) return;
            const Range range = edges_of(graph, row);
            std::int64_t to = result.indptr[row];
            for (std::int64_t edge = range.begin; edge < range.end && to < result.indptr[row + 1]; ++edge) {
                const std::int32_t source = graph.columns[edge];
                const T weight = graph.weights[edge];
                if (!is_position(graph, source)) continue;
                if (source == target ? own_kept[layer * tokens + target] : kept(layer, source, target, weight)) {
                    result.columns[to] = source;
                    result.weights[to++] = weight;
                }
            }
        });
    });
    return result;
}

template <class T>
std::vector<std::uint8_t> reach(const Graph<T>& graph, const std::uint8_t* nodes, bool forward) {
    const std::int64_t tokens = graph.tokens;
    std::vector<std::uint8_t> reached(nodes, nodes + (graph.layers + 1) * tokens);
    for (std::int64_t i = 0; i < graph.layers; ++i) {
        const std::int64_t layer = forward ? i : graph.layers - 1 - i;
        std::uint8_t* below = reached.data() + layer * tokens;
        std::uint8_t* above = below + tokens;
        const auto visit = [&](const Chunk& chunk) {
            each_target(graph, chunk, [&](std::int64_t target, std::int64_t row) {
                if (forward) {
                    bool found = above[target];
                    each_edge(graph, layer, target, row, [&](std::int64_t source, double) { found |= below[source]; });
                    above[target] = found;
                } else if (above[target]) {
                    each_edge(graph, layer, target, row, [&](std::int64_t source, double) { below[source] = 1; });
                }
            });
        };
        if (forward) {
            const std::vector<Chunk> chunks = chunks_of(graph, layer, 16);
            parallel_for(chunks.size(), [&](std::int64_t c) { visit(chunks[c]); });
        } else {
            visit(whole(graph, layer));  // rows share their sources
        }
    }
    return reached;
}

template <class T>
Entries entries(const Graph<T>& graph, std::int64_t layer) {
    Entries found;
    const std::int64_t size =
        graph.indptr[graph.row_offsets[layer + 1]] - graph.indptr[graph.row_offsets[layer]] + graph.tokens;
    found.targets.reserve(size);
    found.sources.reserve(size);
    found.weights.reserve(size);
    each_target(graph, whole(graph, layer), [&](std::int64_t target, std::int64_t row) {
        const std::size_t begin = found.sources.size();
        each_edge(graph, layer, target, row, [&](std::int64_t source, double weight) {
            found.targets.push_back(static_cast<std::int32_t>(target));
            found.sources.push_back(static_cast<std::int32_t>(source));
            found.weights.push_back(weight);
        });
        // The edge from the target's own position came last: it moves to its place.
        if (found.sources.size() == begin || found.sources.back() != target) return;
        const auto first = found.sources.begin() + begin, last = found.sources.end() - 1;
        const auto place = std::lower_bound(first, last, static_cast<std::int32_t>(target)) - found.sources.begin();
        std::rotate(found.sources.begin() + place, last, found.sources.end());
        std::rotate(found.weights.begin() + place, found.weights.end() - 1, found.weights.end());
    });
    return found;
}

#define INSTANTIATE(T)                                                                                            \
    template std::vector<double> mass_thresholds(const Graph<T>&, double);                                        \
    template double edge_threshold(const Graph<T>&, const double*, const std::uint8_t*, double);                  \
    template Kept<T> keep(const Graph<T>&, const double*, bool, const double*, const std::uint8_t*, const T*);    \
    template std::vector<std::uint8_t> reach(const Graph<T>&, const std::uint8_t*, bool);                         \
    template Entries entries(const Graph<T>&, std::int64_t);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace lrp_fast
