#include "pointwise.hpp"

#include <algorithm>
#include <stdexcept>

#include "parallel.hpp"
#include "pointwise_rows.hpp"

namespace lrp_fast {
namespace {

constexpr std::int64_t kEach = 1 << 15;  // numbers that a thread takes at a time: fewer are not worth its start
constexpr char kUnserved[] = "this processor has no AVX2 and FMA, or the compiler made no code for them";

// body(first, end) of rows of so many numbers.
template <class Body>
void by_rows(std::int64_t rows, std::int64_t numbers, int threads, const Body& body) {
    const std::int64_t each = std::max<std::int64_t>(1, kEach / std::max<std::int64_t>(1, numbers));
    parallel_for((rows + each - 1) / each, [&](std::int64_t n) { body(n * each, std::min(rows, (n + 1) * each)); },
                 threads);
}

#if defined(__GNUC__) && defined(__x86_64__)

Gated gated_of(std::int64_t lanes) {
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return nullptr;
    if (lanes != 8 && __builtin_cpu_supports("avx512f")) return gated_avx512;
    return lanes != 16 ? gated_avx2 : nullptr;
}

// Without FMA, which would round a product and a sum together: not where the compiler's own flags allow it, either, and
// not within a function that they hold for.
#define LRP_FAST_APART __attribute__((noinline, target("avx2,no-fma,no-fma4,no-avx512f")))

LRP_FAST_APART void rotate(const float* __restrict x, const float* __restrict cos, const float* __restrict sin,
                           float* __restrict out, std::int64_t half, bool back) {
    const float *const x2 = x + half, *const cos2 = cos + half, *const sin2 = sin + half;
    if (back) {
        for (std::int64_t d = 0; d < half; ++d) {
            const float first = x[d] * cos[d] + x2[d] * sin2[d], second = x2[d] * cos2[d] - x[d] * sin[d];
            out[d] = first;
            out[half + d] = second;
        }
        return;
    }
    for (std::int64_t d = 0; d < half; ++d) {
        const float first = x[d] * cos[d] - x2[d] * sin[d], second = x2[d] * cos2[d] + x[d] * sin2[d];
        out[d] = first;
        out[half + d] = second;
    }
}

#else

Gated gated_of(std::int64_t) { return nullptr; }

void rotate(const float*, const float*, const float*, float*, std::int64_t, bool) {}

#endif

}  // namespace

bool pointwise_serves(std::int64_t lanes) { return gated_of(lanes) != nullptr; }

void gated_mlp_backward(const GatedMlp& given, int threads, std::int64_t lanes) {
    const Gated gated = gated_of(lanes);
    if (!gated) throw std::runtime_error(kUnserved);
    by_rows(given.rows, given.columns, threads, [&](std::int64_t first, std::int64_t end) {
        for (std::int64_t r = first; r < end; ++r) {
            const bool both = given.d_gate.data != nullptr;
            gated({given.g.at(r), given.gate.at(r), both ? given.up.at(r) : nullptr,
                   both ? given.d_gate.at(r) : nullptr, given.d_up.at(r), given.linear, given.cubic, given.share},
                  given.columns);
        }
    });
}

void rotary(const Rotary& given, int threads) {
    if (!pointwise_serves(0)) throw std::runtime_error(kUnserved);
    const std::int64_t rows = given.prompts * given.tokens;
    by_rows(rows, given.heads * given.features, threads, [&](std::int64_t first, std::int64_t end) {
        for (std::int64_t r = first; r < end; ++r) {
            const std::int64_t b = r / given.tokens, t = r % given.tokens;
            for (std::int64_t h = 0; h < given.heads; ++h) {
                rotate(given.x.at(b, h, t), given.cos.at(b, 0, t), given.sin.at(b, 0, t), given.out.at(b, h, t),
                       given.features / 2, given.back);
            }
        }
    });
}

}  // namespace lrp_fast
