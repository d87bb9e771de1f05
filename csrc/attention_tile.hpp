#pragma once

// One tile of an attention's backward pass, by processor: see attention.cpp.

#include <cstdint>

namespace lrp_fast {

constexpr std::int64_t kTile = 64;  // queries, and keys

// Of a tile's queries; rows that are not there are 0, their lse infinite.
struct TileQueries {
    float *query, *g;        // (64, features), the first times the scale
    float *weights, *flow;   // (64, 64), to work in
    float* d_query;          // (64, features), is added to
    float lse[kTile], passed[kTile], norm[kTile];
};

// Of a tile's keys; rows that are not there are 0.
struct TileKeys {
    const float *key, *key_turned, *value_turned;  // (64, features), and (features, 64)
    float *d_key, *d_value;                        // (64, features), are added to; d_key null: values alone
};

// The first query reads the keys from ... to - 1 of the tile, each further query one further; there are `there`.
struct TileReach {
    bool cut;  // whether any key of the tile is not read by some query
    std::int64_t from, to, there;
};

// Returns the tile's mass.
using Visit = double (*)(TileQueries&, const TileKeys&, const TileReach&, std::int64_t features);

double visit_avx512(TileQueries& queries, const TileKeys& keys, const TileReach& reach, std::int64_t features);
double visit_avx2(TileQueries& queries, const TileKeys& keys, const TileReach& reach, std::int64_t features);

}  // namespace lrp_fast
