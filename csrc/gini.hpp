#pragma once

#include <cstdint>
#include <vector>

namespace lrp_fast {

// The Gini coefficient of the values of each group, sum_i (2 i - n - 1) x_i / (n sum_i x_i) over x_1 <= ... <= x_n;
// 0 where they sum to 0, NaN where there are none. Values are not negative; groups are in 0 ... num_groups - 1.
std::vector<double> grouped_gini(const std::int32_t* groups, const double* values, std::int64_t n,
                                 std::int64_t num_groups);

}  // namespace lrp_fast
