#pragma once

// One tile of an attention's backward pass, edges or masses, by processor: see attention.cpp, edges.cpp and masses.cpp.

#include <cstdint>

namespace lrp_fast {

inline constexpr std::int64_t kTile = 64;  // queries, and keys

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

// Of a tile's edges: what a query hands to a key is P (u v~ + ratio (u v - passed) q k~).
struct EdgeQueries {
    const float *query, *u;            // (64, features), the first times the scale
    const float *lse, *passed;         // (64)
    std::int64_t from[kTile], to[kTile];  // the keys that each reads, of all
    std::int64_t count;                // so many queries are there
};

struct EdgeKeys {
    const float *key, *value, *key_part, *value_part;  // (features, 64); the parts null where they are key and value
    std::int64_t first;                                // of all keys
};

// Of 64 queries, 8 of each of 8 tiles: adds to `masses` (8) the sums of their weights on a tile of keys. Of `u` and
// `passed` nothing is read; `work` is (64, 64).
using Masses = void (*)(const EdgeQueries&, const EdgeKeys&, std::int64_t features, float* work, float* masses);

// Returns the tile's mass.
using Visit = double (*)(TileQueries&, const TileKeys&, const TileReach&, std::int64_t features);

// Adds to edges (64, 64); `work` is four times as much.
using Edges = void (*)(const EdgeQueries&, const EdgeKeys&, std::int64_t features, float ratio, float* work,
                       float* edges);

double visit_avx512(TileQueries& queries, const TileKeys& keys, const TileReach& reach, std::int64_t features);
double visit_avx2(TileQueries& queries, const TileKeys& keys, const TileReach& reach, std::int64_t features);
void edges_avx512(const EdgeQueries& queries, const EdgeKeys& keys, std::int64_t features, float ratio, float* work,
                  float* edges);
void edges_avx2(const EdgeQueries& queries, const EdgeKeys& keys, std::int64_t features, float ratio, float* work,
                float* edges);
void masses_avx512(const EdgeQueries& queries, const EdgeKeys& keys, std::int64_t features, float* work, float* masses);
void masses_avx2(const EdgeQueries& queries, const EdgeKeys& keys, std::int64_t features, float* work, float* masses);

}  // namespace lrp_fast
