#include "gini.hpp"

#include <algorithm>
#include <limits>

#include "parallel.hpp"

namespace lrp_fast {

std::vector<double> grouped_gini(const std::int32_t* groups, const double* values, std::int64_t n,
                                 std::int64_t num_groups) {
    // The groups were checked, and may have been written to since.
    const auto is_group = [num_groups](std::int64_t group) { return group >= 0 && group < num_groups; };
    std::vector<std::int64_t> ends(num_groups + 1);
    for (std::int64_t i = 0; i < n; ++i) {
        if (is_group(groups[i])) ++ends[groups[i] + 1];
    }
    for (std::int64_t group = 0; group < num_groups; ++group) ends[group + 1] += ends[group];
    std::vector<double> sorted(n);
    std::vector<std::int64_t> next(ends.begin(), ends.end() - 1);
    for (std::int64_t i = 0; i < n; ++i) {
        const std::int64_t group = groups[i];
        if (is_group(group) && next[group] < ends[group + 1]) sorted[next[group]++] = values[i];
    }

    constexpr std::int64_t piece = 1 << 12;
    std::vector<double> ginis(num_groups, std::numeric_limits<double>::quiet_NaN());
    parallel_for((num_groups + piece - 1) / piece, [&](std::int64_t p) {
        for (std::int64_t group = p * piece; group < std::min(num_groups, (p + 1) * piece); ++group) {
            const auto first = sorted.begin() + ends[group], last = sorted.begin() + ends[group + 1];
            if (first == last) continue;
            std::sort(first, last);
            const double count = static_cast<double>(last - first);
            double weighted = 0, sum = 0, rank = 0;
            for (auto one = first; one != last; ++one) {
                weighted += (2 * ++rank - count - 1) * *one;
                sum += *one;
            }
            ginis[group] = sum > 0 ? weighted / (count * sum) : 0.0;
        }
    });
    return ginis;
}

}  // namespace lrp_fast
