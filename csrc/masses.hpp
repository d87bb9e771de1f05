#pragma once

// The weights of a few queries by tiles of keys, on x86 CPUs, float32: what a bounded backward pass chooses by.

#include <cstdint>

#include "attention.hpp"

namespace lrp_fast {

constexpr std::int64_t kDrawn = 8;  // queries of a tile

struct MassesGiven {
    Tokens<const float> query, key;
    const float* lse;           // (heads, queries), dense
    const std::int64_t* drawn;  // (heads, tiles of queries, 8): which queries
};

// Writes (heads, tiles of queries, tiles of keys), the sums of the weights of each tile's queries. `work` are
// attention_masses_floats.
void attention_masses(const AttentionShape& shape, const MassesGiven& given, float* masses, float* work, int threads,
                      std::int64_t lanes);

std::int64_t attention_masses_floats(const AttentionShape& shape);

}  // namespace lrp_fast
