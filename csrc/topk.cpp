#include "topk.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

namespace lrp_fast {
namespace {

static_assert(std::numeric_limits<float>::is_iec559 && sizeof(float) == 4, "the keys below are IEEE binary32 bits");

constexpr std::uint32_t kSignBit = 0x80000000u;
constexpr std::uint32_t kInfinity = 0x7f800000u;
constexpr int kLowBits = 16;
constexpr std::uint32_t kLowMask = (1u << kLowBits) - 1;

// |value| as an integer. Without the sign bit, the bits of two floats order as their magnitudes do: the two zeros are
// equal, denormals keep their order even where the processor flushes them to zero, and only a NaN exceeds infinity.
inline std::uint32_t magnitude_key(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits & ~kSignBit;
}

struct Entry {
    std::uint32_t key;
    std::int64_t index;
};

// The smallest key that is kept, and how many entries with exactly that key are.
struct Threshold {
    std::uint32_t key;
    std::int64_t ties_kept;
};

// Walks the bins from the top until they hold `wanted` entries; lowers `wanted` by what lies above the bin it returns.
std::uint32_t bin_of_kth(const std::vector<std::int64_t>& counts, std::int64_t& wanted) {
    std::size_t bin = counts.size() - 1;
    for (; bin > 0 && counts[bin] < wanted; --bin) wanted -= counts[bin];
    return static_cast<std::uint32_t>(bin);
}

// The k-th largest key, 1 <= k <= n, in two counting passes: first its upper half, then its lower half among the
// entries that share the upper one. O(n) whatever the values are, and no array of length n.
Threshold kth_largest_key(const float* values, std::int64_t n, std::int64_t k) {
    // Room for NaN keys too, although there are none: whoever writes to values meanwhile spoils the answer, not memory.
    std::vector<std::int64_t> high_counts(kSignBit >> kLowBits, 0);
    for (std::int64_t i = 0; i < n; ++i) ++high_counts[magnitude_key(values[i]) >> kLowBits];
    const std::uint32_t high = bin_of_kth(high_counts, k);

    std::vector<std::int64_t> low_counts(kLowMask + 1, 0);
    for (std::int64_t i = 0; i < n; ++i) {
        const std::uint32_t key = magnitude_key(values[i]);
        if (key >> kLowBits == high) ++low_counts[key & kLowMask];
    }
    const std::uint32_t low = bin_of_kth(low_counts, k);
    return {high << kLowBits | low, k};
}

void reject_nan(const float* values, std::int64_t n) {
    for (std::int64_t i = 0; i < n; ++i) {
        if (magnitude_key(values[i]) > kInfinity) {
            throw std::invalid_argument("values must not hold a NaN, and the one at index " + std::to_string(i) + " is");
        }
    }
}

}  // namespace

std::vector<std::int64_t> topk_magnitude(const float* values, std::int64_t n, std::int64_t k) {
    reject_nan(values, n);
    k = std::clamp<std::int64_t>(k, 0, n);
    if (k == 0) return {};

    Threshold threshold = kth_largest_key(values, n, k);
    std::vector<Entry> kept;
    kept.reserve(static_cast<std::size_t>(k));
    for (std::int64_t i = 0; i < n; ++i) {
        const std::uint32_t key = magnitude_key(values[i]);
        if (key > threshold.key || (key == threshold.key && threshold.ties_kept-- > 0)) kept.push_back({key, i});
    }
    std::sort(kept.begin(), kept.end(), [](const Entry& a, const Entry& b) {
        return a.key != b.key ? a.key > b.key : a.index < b.index;
    });

    std::vector<std::int64_t> indices(kept.size());
    std::transform(kept.begin(), kept.end(), indices.begin(), [](const Entry& entry) { return entry.index; });
    return indices;
}

}  // namespace lrp_fast
