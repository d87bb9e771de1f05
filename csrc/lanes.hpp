#pragma once

// Registers of floats, by processor: a source that includes this says its instructions (LRP_FAST_TARGET) and how many
// floats a register holds (LRP_FAST_LANES). What is compiled for a processor is inlined there, so that no other code calls
// it.

#include <cstdint>

namespace lrp_fast {
namespace {

#define LRP_FAST_ONLY __attribute__((target(LRP_FAST_TARGET)))
#define LRP_FAST_INLINE LRP_FAST_ONLY __attribute__((always_inline)) inline

constexpr int kLanes = LRP_FAST_LANES;
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef float Memory __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef std::int32_t Integers __attribute__((vector_size(4 * kLanes)));

LRP_FAST_INLINE Memory& at(float* pointer) { return *reinterpret_cast<Memory*>(pointer); }
LRP_FAST_INLINE const Memory& at(const float* pointer) { return *reinterpret_cast<const Memory*>(pointer); }

// exp, to 2 units in the last place, of what is not above 88; 0 below -87.
LRP_FAST_INLINE void exponentiate(Floats& x) {
    constexpr float rounding = 12582912.0f;  // added to it, a number loses its fraction: the last bits hold the integer
    const Floats bounded = x < -87.0f ? Floats{} - 87.0f : x;
    const Floats shifted = bounded * 1.44269504f + rounding, n = shifted - rounding;
    const Floats r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts, the first of few bits
    Floats sum = r * (1.0f / 5040) + 1.0f / 720;
    sum = sum * r + 1.0f / 120;
    sum = sum * r + 1.0f / 24;
    sum = sum * r + 1.0f / 6;
    sum = sum * r + 0.5f;
    sum = sum * r + 1.0f;
    sum = sum * r + 1.0f;
    const Floats found = (Floats)((Integers)sum + ((Integers)shifted << 23));
    x = x < -87.0f ? Floats{} : x == x ? found : x;  // a NaN stays one
}

}  // namespace
}  // namespace lrp_fast
