// The code of pointwise_rows.hpp's functions: each includes it with what lanes.hpp takes.

#include "lanes.hpp"
#include "pointwise_rows.hpp"

namespace lrp_fast {
namespace {

// So many numbers as a register holds.
LRP_FAST_INLINE void gated(const GatedRow& row, const float* g, const float* gate, const float* up, float* d_gate,
                           float* d_up) {
    const Floats z = at(gate);
    Floats power = -z * row.linear;
    if (row.cubic != 0) power *= row.cubic / row.linear * z * z + 1.0f;  // of an infinite z, 0 times it were no number
    const Integers nothing = power > 87.0f;  // passes: a NaN is not above
    exponentiate(power);
    const Floats ratio = row.share / (power + 1.0f);
    const Floats passed = at(g) * (nothing ? Floats{} : ratio);
    if (d_gate) at(d_gate) = passed * at(up);
    at(d_up) = passed * z;
}

}  // namespace

LRP_FAST_ONLY void LRP_FAST_GATED(const GatedRow& row, std::int64_t columns) {
    std::int64_t j = 0;
    for (; j + kLanes <= columns; j += kLanes) {
        gated(row, row.g + j, row.gate + j, row.d_gate ? row.up + j : nullptr, row.d_gate ? row.d_gate + j : nullptr,
              row.d_up + j);
    }
    if (j == columns) return;
    float g[kLanes]{}, gate[kLanes]{}, up[kLanes]{}, d_gate[kLanes], d_up[kLanes];
    for (std::int64_t i = j; i < columns; ++i) {
        g[i - j] = row.g[i];
        gate[i - j] = row.gate[i];
        if (row.d_gate) up[i - j] = row.up[i];
    }
    gated(row, g, gate, up, row.d_gate ? d_gate : nullptr, d_up);
    for (std::int64_t i = j; i < columns; ++i) {
        if (row.d_gate) row.d_gate[i] = d_gate[i - j];
        row.d_up[i] = d_up[i - j];
    }
}

}  // namespace lrp_fast
