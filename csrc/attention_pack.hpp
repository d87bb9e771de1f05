#pragma once

// What the passes over tiles share: which code serves this processor, and how tiles are laid out for it.

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>

#include "attention.hpp"
#include "attention_tile.hpp"
#include "parallel.hpp"

namespace lrp_fast {

// Null where the processor, the compiler or the number of features is none of theirs: see attention_backward_serves.
Visit visit_of(std::int64_t features, std::int64_t lanes);
Edges edges_of(std::int64_t features, std::int64_t lanes);
Masses masses_of(std::int64_t features, std::int64_t lanes);
inline constexpr const char* kUnserved = "this processor has no AVX2, or the features are no multiple of 16 up to 256";

// Memory that is not written to before it is used, from the first byte of a cache line on.
struct Release {
    void operator()(float* pointer) const { ::operator delete[](pointer, std::align_val_t(64)); }
};
using Buffer = std::unique_ptr<float[], Release>;

inline Buffer buffer(std::int64_t size) {
    return Buffer(static_cast<float*>(::operator new[](size * sizeof(float), std::align_val_t(64))));
}

// (64, features) of a head's tokens from `first` to `total` - 1, and zeros.
inline void take(const Tokens<const float>& from, std::int64_t head, std::int64_t first, std::int64_t total,
                 std::int64_t features, float scale, float* to) {
    const std::int64_t there = std::min(kTile, total - first);
    for (std::int64_t t = 0; t < there; ++t) {
        const float* const token = from.at(head, first + t);
        for (std::int64_t d = 0; d < features; ++d) to[t * features + d] = token[d] * scale;
    }
    std::fill(to + there * features, to + kTile * features, 0.0f);
}

// (features, 64) of (64, features).
inline void turn(const float* from, std::int64_t features, float* to) {
    for (std::int64_t d = 0; d < features; ++d) {
        for (std::int64_t j = 0; j < kTile; ++j) to[d * kTile + j] = from[j * features + d];
    }
}

// All tiles of all heads so, one after another.
inline void turn_all(const Tokens<const float>& from, std::int64_t heads, std::int64_t total, std::int64_t features,
                     float* to, int threads) {
    const std::int64_t columns = attention_tiles(total), size = kTile * features;
    parallel_for(heads * columns, [&](std::int64_t n) {
        const Buffer plain = buffer(size);
        take(from, n / columns, n % columns * kTile, total, features, 1, plain.get());
        turn(plain.get(), features, to + n * size);
    }, threads);
}

// In one order of sums, whatever the compiler makes of it.
inline float dot(const float* a, const float* b, std::int64_t n) {
    float sums[8] = {};
    for (std::int64_t d = 0; d < n; d += 8) {
        for (int lane = 0; lane < 8; ++lane) sums[lane] += a[d + lane] * b[d + lane];
    }
    return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

}  // namespace lrp_fast
