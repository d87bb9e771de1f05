#pragma once

// What queries hand to keys through one attention, on x86 CPUs, float32: lrp_fast/ops/edges.py has the formula.

#include <cstdint>

#include "attention.hpp"

namespace lrp_fast {

struct EdgesGiven {
    Tokens<const float> g, out, query, key, value;
    Tokens<const float> key_part, value_part;  // data null: they are key and value
    const float* lse;                          // (heads, queries), dense
    const std::uint8_t* tiles;                 // (heads, tiles of queries, tiles of keys): which have any; null: all
    float share, ratio;  // of the values, and of the scores in units of that
    const std::int64_t* rows;  // which queries, ascending
    std::int64_t num_rows;
    bool packed;  // whether `work` is as a call with the same keys and values left it
};

// Of each query the keys from `low` to `high` - 1: (num_rows, high - low).
void attention_edges(const AttentionShape& shape, const EdgesGiven& given, std::int64_t low, std::int64_t high,
                     float* edges, float* work, int threads, std::int64_t lanes);

// Of each query the k edges of largest magnitude, of equal ones those with the lower key, by keys ascending: (num_rows, k),
// with weights of 0 where there are fewer; and (num_rows, 2), the sums of the positive and of the negative others.
void attention_edges_strongest(const AttentionShape& shape, const EdgesGiven& given, std::int64_t k,
                               std::int32_t* columns, float* weights, float* dropped, float* work, int threads,
                               std::int64_t lanes);

// How many floats `work` has.
std::int64_t attention_edges_floats(const AttentionShape& shape, bool key_part, bool value_part);

}  // namespace lrp_fast
