#pragma once

#include <cstdint>
#include <vector>

namespace lrp_fast {

// Indices of the k entries of largest magnitude, by |value| descending, then by index ascending: a total order, so the
// answer is unique. k is clamped to [0, n]. Throws std::invalid_argument where values hold a NaN.
std::vector<std::int64_t> topk_magnitude(const float* values, std::int64_t n, std::int64_t k);

}  // namespace lrp_fast
