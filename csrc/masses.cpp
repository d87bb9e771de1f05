#include "masses.hpp"

#include <algorithm>
#include <stdexcept>

#include "attention_pack.hpp"
#include "parallel.hpp"

namespace lrp_fast {
namespace {

constexpr std::int64_t kTogether = kTile / kDrawn;  // tiles of queries whose drawn ones fill a tile

// The drawn queries of some tiles of one head.
void of_tiles(const AttentionShape& shape, const MassesGiven& given, Masses masses_of_tile, const float* turned,
              std::int64_t head, std::int64_t begin, std::int64_t end, float* masses) {
    const std::int64_t features = shape.features, size = kTile * features, columns = attention_tiles(shape.keys);
    const Buffer query = buffer(size), work = buffer(kTile * kTile);
    float lse[kTile] = {};
    EdgeQueries tile{};
    tile.query = query.get();
    tile.lse = lse;
    tile.count = (end - begin) * kDrawn;
    std::fill(query.get() + tile.count * features, query.get() + size, 0.0f);
    std::int64_t low = shape.keys, high = 0;
    for (std::int64_t i = 0; i < tile.count; ++i) {
        const std::int64_t drawn = given.drawn[(head * attention_tiles(shape.queries) + begin) * kDrawn + i];
        const std::int64_t position = drawn + shape.keys - shape.queries;
        const float* const from = given.query.at(head, drawn);
        for (std::int64_t d = 0; d < features; ++d) query[i * features + d] = from[d] * shape.scale;
        lse[i] = given.lse[head * shape.queries + drawn];
        low = std::min(low, tile.from[i] = std::max<std::int64_t>(0, position - shape.behind + 1));
        high = std::max(high, tile.to[i] = std::min(shape.keys, position + shape.ahead));
    }
    for (std::int64_t j = low / kTile; j < attention_tiles(high); ++j) {
        float sums[kTogether] = {};
        const float* const key = turned + (head / (shape.heads / shape.key_heads) * columns + j) * size;
        masses_of_tile(tile, {key, nullptr, nullptr, nullptr, j * kTile}, features, work.get(), sums);
        for (std::int64_t row = begin; row < end; ++row) masses[row * columns + j] = sums[row - begin];
    }
}

}  // namespace

std::int64_t attention_masses_floats(const AttentionShape& shape) {
    return shape.key_heads * attention_tiles(shape.keys) * kTile * shape.features;
}

void attention_masses(const AttentionShape& shape, const MassesGiven& given, float* masses, float* work, int threads,
                      std::int64_t lanes) {
    const Masses masses_of_tile = masses_of(shape.features, lanes);
    if (!masses_of_tile) throw std::runtime_error(kUnserved);
    const std::int64_t rows = attention_tiles(shape.queries), columns = attention_tiles(shape.keys);
    const std::int64_t each = (rows + kTogether - 1) / kTogether;
    std::fill(masses, masses + shape.heads * rows * columns, 0.0f);
    turn_all(given.key, shape.key_heads, shape.keys, shape.features, work, threads);
    parallel_for(shape.heads * each, [&](std::int64_t n) {
        const std::int64_t head = n % shape.heads, begin = (each - 1 - n / shape.heads) * kTogether;
        of_tiles(shape, given, masses_of_tile, work, head, begin, std::min(rows, begin + kTogether),
                 masses + head * rows * columns);
    }, threads);
}

}  // namespace lrp_fast
