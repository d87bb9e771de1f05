#pragma once

// A row of what pointwise.cpp computes, by processor.

#include <cstdint>

namespace lrp_fast {

struct GatedRow {
    const float *g, *gate, *up;
    float *d_gate, *d_up;
    float linear, cubic, share;
};

using Gated = void (*)(const GatedRow& row, std::int64_t columns);

void gated_avx512(const GatedRow& row, std::int64_t columns);
void gated_avx2(const GatedRow& row, std::int64_t columns);

}  // namespace lrp_fast
