#pragma once

// The backward pass of attention on x86 CPUs, float32, by tiles of 64 queries and 64 keys.

#include <cstdint>

namespace lrp_fast {

struct AttentionShape {
    std::int64_t heads, key_heads, queries, keys, features;
    float scale;
    // The query at position p = keys - queries + i reads the keys p - behind + 1 ... p + ahead - 1.
    std::int64_t behind, ahead;
    bool scores;  // false: the weights are constants, which leaves out the gradients of query and key
};

// (heads, tokens, features), the features dense.
template <class Float>
struct Tokens {
    Float* data;
    std::int64_t head, token;  // strides

    Float* at(std::int64_t h, std::int64_t t) const { return data + h * head + t * token; }
};

struct AttentionGiven {
    Tokens<const float> g, query, key, value, out;
    const float* lse;  // (heads, queries), dense
    const float* norm;  // the same, |g| for the mass; null: none is taken
    const std::uint8_t* tiles;  // (heads, tiles of queries, tiles of keys): which are visited; null: all
};

// What is added to; query and key are null without `scores`.
struct AttentionGradients {
    Tokens<float> query, key, value;
};

// Whether this processor and compiler have what it takes, for heads of so many features, with registers of 16 floats
// (AVX-512) or 8 (AVX2); 0: any.
bool attention_backward_serves(std::int64_t features, std::int64_t lanes);

// Returns the mass of what was visited: the sum of norm times weight. The same bits with any number of threads. `work`
// are as many floats as attention_backward_floats says, to work in.
double attention_backward(const AttentionShape& shape, const AttentionGiven& given, const AttentionGradients& out,
                          float* work, int threads, std::int64_t lanes);

std::int64_t attention_backward_floats(const AttentionShape& shape);

std::int64_t attention_tiles(std::int64_t n);

}  // namespace lrp_fast
