// The code of attention_tile.hpp's functions: each includes it with what lanes.hpp takes, and the block of a product that
// the processor's registers hold (LRP_FAST_ROWS x LRP_FAST_REGISTERS).

#include <algorithm>

#include "attention_tile.hpp"
#include "lanes.hpp"

namespace lrp_fast {
namespace {

constexpr int kRows = LRP_FAST_ROWS, kRegisters = LRP_FAST_REGISTERS;

// c = a b or, to add, c += a b: (R, V registers) over so many terms. Rows of b and c are dense, a's strides are any.
template <int R, int V, bool add>
LRP_FAST_INLINE void block(std::int64_t terms, const float* a, std::int64_t row, std::int64_t term, const float* b,
                           float* c, std::int64_t columns) {
    Floats sums[R][V];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) sums[r][v] = add ? Floats(at(c + r * columns + v * kLanes)) : Floats{};
    }
    for (std::int64_t k = 0; k < terms; ++k) {
        Floats of_b[V];
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) of_b[v] = at(b + k * columns + v * kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const float of_a = a[r * row + k * term];
#pragma GCC unroll 16
            for (int v = 0; v < V; ++v) sums[r][v] += of_a * of_b[v];
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) at(c + r * columns + v * kLanes) = sums[r][v];
    }
}

// The same of 64 rows, or of the first `count` of them and some more, and as many columns as a multiple of 16.
template <bool add>
LRP_FAST_INLINE void product(std::int64_t terms, const float* a, std::int64_t row, std::int64_t term, const float* b,
                             float* c, std::int64_t columns, std::int64_t count = kTile) {
    std::int64_t first = 0;
    for (; first + kRegisters * kLanes <= columns; first += kRegisters * kLanes) {
        std::int64_t r = 0;
        for (; r + kRows <= kTile && r < count; r += kRows) {
            block<kRows, kRegisters, add>(terms, a + r * row, row, term, b + first, c + r * columns + first, columns);
        }
        if constexpr (kTile % kRows != 0) {
            constexpr int rest = kTile % kRows;
            if (r < count) {
                block<rest, kRegisters, add>(terms, a + r * row, row, term, b + first, c + r * columns + first, columns);
            }
        }
    }
    for (; first < columns; first += kLanes) {
        for (std::int64_t r = 0; r < count; r += 8) {
            block<8, 1, add>(terms, a + r * row, row, term, b + first, c + r * columns + first, columns);
        }
    }
}

}  // namespace

LRP_FAST_ONLY double LRP_FAST_VISIT(TileQueries& queries, const TileKeys& keys, const TileReach& reach,
                                    std::int64_t features) {
    product<false>(features, queries.query, features, 1, keys.key_turned, queries.weights, kTile);
    Floats mass{};
    for (std::int64_t i = 0; i < kTile; ++i) {
        float* const row = queries.weights + i * kTile;
        for (std::int64_t j = 0; j < kTile; j += kLanes) {
            Floats x = at(row + j) - queries.lse[i];
            exponentiate(x);
            at(row + j) = x;
        }
        if (reach.cut) {
            const std::int64_t from = std::clamp<std::int64_t>(reach.from + i, 0, kTile);
            const std::int64_t to = std::clamp<std::int64_t>(std::min(reach.to + i, reach.there), from, kTile);
            for (std::int64_t j = 0; j < from; ++j) row[j] = 0;
            for (std::int64_t j = to; j < kTile; ++j) row[j] = 0;
        }
        Floats sum{};
        for (std::int64_t j = 0; j < kTile; j += kLanes) sum += at(row + j);
        mass += sum * queries.norm[i];
    }
    product<true>(kTile, queries.weights, 1, kTile, queries.g, keys.d_value, features);
    if (keys.d_key) {
        product<false>(features, queries.g, features, 1, keys.value_turned, queries.flow, kTile);
        for (std::int64_t i = 0; i < kTile; ++i) {
            for (std::int64_t j = i * kTile; j < (i + 1) * kTile; j += kLanes) {
                at(queries.flow + j) = (at(queries.flow + j) - queries.passed[i]) * at(queries.weights + j);
            }
        }
        product<true>(kTile, queries.flow, kTile, 1, keys.key, queries.d_query, features);
        product<true>(kTile, queries.flow, 1, kTile, queries.query, keys.d_key, features);
    }
    double total = 0;
    for (int lane = 0; lane < kLanes; ++lane) total += mass[lane];
    return total;
}

LRP_FAST_ONLY void LRP_FAST_EDGES(const EdgeQueries& queries, const EdgeKeys& keys, std::int64_t features, float ratio,
                                  float* work, float* edges) {
    float* const products[] = {work, work + kTile * kTile, work + 2 * kTile * kTile, work + 3 * kTile * kTile};
    const auto between = [&](int place, const float* a, const float* b) LRP_FAST_ONLY {
        product<false>(features, a, features, 1, b, products[place], kTile, queries.count);
    };
    between(0, queries.query, keys.key);
    between(1, queries.u, keys.value);
    if (keys.key_part && ratio != 0) between(2, queries.query, keys.key_part);
    if (keys.value_part) between(3, queries.u, keys.value_part);
    const float* const through = products[keys.key_part && ratio != 0 ? 2 : 0];
    const float* const direct = products[keys.value_part ? 3 : 1];
    for (std::int64_t i = 0; i < queries.count; ++i) {
        const std::int64_t from = std::clamp<std::int64_t>(queries.from[i] - keys.first, 0, kTile);
        const std::int64_t to = std::clamp<std::int64_t>(queries.to[i] - keys.first, from, kTile);
        float* const row = products[1] + i * kTile;
        for (std::int64_t j = i * kTile; j < (i + 1) * kTile; j += kLanes) {
            const Floats flow = at(products[1] + j);
            Floats weights = at(products[0] + j) - queries.lse[i];
            exponentiate(weights);
            Floats edges_of_head = at(direct + j);
            if (ratio != 0) edges_of_head += (flow - queries.passed[i]) * ratio * at(through + j);
            at(products[1] + j) = weights * edges_of_head;
        }
        for (std::int64_t j = 0; j < from; ++j) row[j] = 0;
        for (std::int64_t j = to; j < kTile; ++j) row[j] = 0;
        for (std::int64_t j = 0; j < kTile; j += kLanes) at(edges + i * kTile + j) += at(row + j);
    }
}

LRP_FAST_ONLY void LRP_FAST_MASSES(const EdgeQueries& queries, const EdgeKeys& keys, std::int64_t features, float* work,
                                   float* masses) {
    product<false>(features, queries.query, features, 1, keys.key, work, kTile, queries.count);
    Floats sum{};
    for (std::int64_t i = 0; i < queries.count; ++i) {
        float* const row = work + i * kTile;
        for (std::int64_t j = 0; j < kTile; j += kLanes) {
            Floats weights = at(row + j) - queries.lse[i];
            exponentiate(weights);
            at(row + j) = weights;
        }
        const std::int64_t from = std::clamp<std::int64_t>(queries.from[i] - keys.first, 0, kTile);
        const std::int64_t to = std::clamp<std::int64_t>(queries.to[i] - keys.first, from, kTile);
        for (std::int64_t j = 0; j < from; ++j) row[j] = 0;
        for (std::int64_t j = to; j < kTile; ++j) row[j] = 0;
        for (std::int64_t j = 0; j < kTile; j += kLanes) sum += at(row + j);
        if (i % 8 != 7) continue;
        for (int lane = 0; lane < kLanes; ++lane) masses[i / 8] += sum[lane];
        sum = Floats{};
    }
}

}  // namespace lrp_fast
