#pragma once

// What is computed number by number, in one pass over memory, on x86 CPUs, float32: the product in a gated MLP on the way
// back, and rotary positions.

#include <cstdint>

namespace lrp_fast {

// (rows, columns), the columns dense.
template <class Float>
struct Rows {
    Float* data;
    std::int64_t row;  // stride

    Float* at(std::int64_t r) const { return data + r * row; }
};

// f(z)/z of the gate's activation is 1 / (1 + exp(-(linear z + cubic z^3))): SiLU's, and that of GELU by tanh. Relevance
// gradients are that times `share`, times the other factor of the product: `up` for `d_gate`, both null where the gate is a
// constant, and the gate for `d_up`.
struct GatedMlp {
    std::int64_t rows, columns;
    Rows<const float> g, gate, up;
    Rows<float> d_gate, d_up;
    float linear, cubic, share;
};

void gated_mlp_backward(const GatedMlp& given, int threads, std::int64_t lanes);

// (prompts, heads, tokens, features), the features dense.
template <class Float>
struct Heads {
    Float* data;
    std::int64_t prompt, head, token;  // strides

    Float* at(std::int64_t b, std::int64_t h, std::int64_t t) const {
        return data + b * prompt + h * head + t * token;
    }
};

struct Rotary {
    std::int64_t prompts, heads, tokens, features;
    Heads<const float> x, cos, sin;  // the angles' have heads' stride 0
    Heads<float> out;
    bool back;  // the transpose
};

// x cos + rotate_half(x) sin, each product and each sum rounded by itself.
void rotary(const Rotary& given, int threads);

// Whether this processor and compiler have what both take, with registers of 16 floats (AVX-512) or 8 (AVX2); 0: any.
bool pointwise_serves(std::int64_t lanes);

}  // namespace lrp_fast
