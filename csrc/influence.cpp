#include "influence.hpp"

#include "parallel.hpp"

namespace lrp_fast {
namespace {

// Sums over sources are made apart for pieces of a transition and then added in order, so that the number of threads
// changes no rounding. So few pieces that the sums are small beside the edges.
constexpr std::int64_t kMaxChunks = 8;

template <class T>
std::vector<Chunk> pieces_of(const Graph<T>& graph, std::int64_t layer) {
    const std::int64_t edges =
        graph.indptr[graph.row_offsets[layer + 1]] - graph.indptr[graph.row_offsets[layer]];
    return chunks_of(graph, layer, std::clamp<std::int64_t>(edges / (4 * graph.tokens), 1, kMaxChunks));
}

// The sum of |weight| over the edges into a target from the sources of a mask.
template <class T>
double masked_mass(const Graph<T>& graph, std::int64_t layer, std::int64_t target, std::int64_t row,
                   const std::uint8_t* source_mask) {
    double total = 0;
    each_edge(graph, layer, target, row, [&](std::int64_t source, double weight) {
        if (source_mask[source]) total += std::abs(weight);
    });
    return total;
}

}  // namespace

template <class T>
Influence influence(const Graph<T>& graph, const double* start, const T* signs, const std::uint8_t* mask,
                    bool count_dropped) {
    const std::int64_t tokens = graph.tokens;
    Influence result{std::vector<double>((graph.layers + 1) * tokens), std::vector<double>(graph.layers * tokens)};
    std::vector<double> sums(kMaxChunks * tokens);

    for (std::int64_t layer = graph.layers - 1; layer >= 0; --layer) {
        const std::uint8_t* source_mask = mask ? mask + layer * tokens : nullptr;
        const std::uint8_t* target_mask = mask ? mask + (layer + 1) * tokens : nullptr;
        const double* above = result.nodes.data() + (layer + 1) * tokens;
        const std::vector<Chunk> chunks = pieces_of(graph, layer);
        const auto num_chunks = static_cast<std::int64_t>(chunks.size());

        parallel_for(num_chunks, [&](std::int64_t c) {
            double* sum = sums.data() + c * tokens;
            std::fill_n(sum, tokens, 0.0);
            each_target(graph, chunks[c], [&](std::int64_t target, std::int64_t row) {
                const double arriving = above[target] + start[(layer + 1) * tokens + target];
                if (arriving == 0 || (target_mask && !target_mask[target])) return;
                const double total = (count_dropped ? dropped_mass(graph, row) : 0.0) +
                                     (source_mask ? masked_mass(graph, layer, target, row, source_mask)
                                                  : kept_mass(graph, layer, target, row));
                if (total == 0) return;
                const double factor = arriving / total;
                result.factors[layer * tokens + target] = factor;
                const double sign = signs && signs[(layer + 1) * tokens + target] < 0 ? -factor : factor;
                each_edge(graph, layer, target, row, [&](std::int64_t source, double weight) {
                    if (source_mask && !source_mask[source]) return;
                    sum[source] += signs ? weight * sign : std::abs(weight) * factor;
                });
            });
        });

        double* below = result.nodes.data() + layer * tokens;
        parallel_for(num_chunks, [&](std::int64_t piece) {
            const std::int64_t end = tokens * (piece + 1) / num_chunks;
            for (std::int64_t i = tokens * piece / num_chunks; i < end; ++i) {
                for (std::int64_t c = 0; c < num_chunks; ++c) below[i] += sums[c * tokens + i];
            }
        });
    }
    return result;
}

template Influence influence(const Graph<float>&, const double*, const float*, const std::uint8_t*, bool);
template Influence influence(const Graph<double>&, const double*, const double*, const std::uint8_t*, bool);

}  // namespace lrp_fast
