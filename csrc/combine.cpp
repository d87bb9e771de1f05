#include "combine.hpp"

#include "parallel.hpp"

namespace lrp_fast {
namespace {

// One transition of the result, made apart from the others.
template <class T>
struct Transition {
    std::vector<std::int32_t> rows;
    std::vector<std::int64_t> counts;
    std::vector<std::int32_t> columns;
    std::vector<T> weights;
    std::vector<T> dropped;

    void add(std::int64_t column, double weight) {
        const T rounded = static_cast<T>(weight);
        if (rounded == 0) return;
        columns.push_back(static_cast<std::int32_t>(column));
        weights.push_back(rounded);
        ++counts.back();
    }

    void begin_row(std::int64_t row) {
        rows.push_back(static_cast<std::int32_t>(row));
        counts.push_back(0);
    }

    void end_row(double positive, double negative) {
        dropped.push_back(static_cast<T>(positive));
        dropped.push_back(static_cast<T>(negative));
    }
};

template <class V>
void append(std::vector<V>& to, std::vector<V>& from) {
    to.insert(to.end(), from.begin(), from.end());
    std::vector<V>().swap(from);
}

template <class T>
Combined<T> joined(std::vector<Transition<T>>& transitions) {
    std::size_t num_rows = 0, num_edges = 0;
    for (const Transition<T>& one : transitions) {
        num_rows += one.rows.size();
        num_edges += one.columns.size();
    }
    Combined<T> all;
    all.rows.reserve(num_rows);
    all.indptr.reserve(num_rows + 1);
    all.columns.reserve(num_edges);
    all.weights.reserve(num_edges);
    all.dropped.reserve(2 * num_rows);
    all.row_offsets.push_back(0);
    all.indptr.push_back(0);
    for (Transition<T>& one : transitions) {
        for (const std::int64_t count : one.counts) all.indptr.push_back(all.indptr.back() + count);
        append(all.rows, one.rows);
        append(all.columns, one.columns);
        append(all.weights, one.weights);
        append(all.dropped, one.dropped);
        all.row_offsets.push_back(static_cast<std::int64_t>(all.rows.size()));
    }
    return all;
}

// Walks two ascending sequences at once: f(value, place in a or -1, place in b or -1).
template <class F>
void each_of_either(const std::int32_t* a, Range in_a, const std::int32_t* b, Range in_b, F&& f) {
    while (in_a.begin < in_a.end || in_b.begin < in_b.end) {
        const bool from_a = in_b.begin == in_b.end || (in_a.begin < in_a.end && a[in_a.begin] <= b[in_b.begin]);
        const bool from_b = in_a.begin == in_a.end || (in_b.begin < in_b.end && b[in_b.begin] <= a[in_a.begin]);
        f(from_a ? a[in_a.begin] : b[in_b.begin], from_a ? in_a.begin : -1, from_b ? in_b.begin : -1);
        in_a.begin += from_a;
        in_b.begin += from_b;
    }
}

template <class T>
Transition<T> difference_of(const Graph<T>& a, const Graph<T>& b, std::int64_t layer) {
    Transition<T> result;
    each_of_either(
        a.rows, {a.row_offsets[layer], a.row_offsets[layer + 1]}, b.rows,
        {b.row_offsets[layer], b.row_offsets[layer + 1]},
        [&](std::int64_t target, std::int64_t row_a, std::int64_t row_b) {
            result.begin_row(target);
            each_of_either(a.columns, row_a < 0 ? Range{0, 0} : edges_of(a, row_a), b.columns,
                           row_b < 0 ? Range{0, 0} : edges_of(b, row_b),
                           [&](std::int64_t source, std::int64_t in_a, std::int64_t in_b) {
                               result.add(source, (in_a < 0 ? 0.0 : double(a.weights[in_a])) -
                                                      (in_b < 0 ? 0.0 : double(b.weights[in_b])));
                           });
            double positive = 0, negative = 0;
            if (row_a >= 0) positive += a.dropped[2 * row_a], negative += a.dropped[2 * row_a + 1];
            if (row_b >= 0) positive -= b.dropped[2 * row_b + 1], negative -= b.dropped[2 * row_b];
            result.end_row(positive, negative);
        });
    return result;
}

template <class T>
Transition<T> group_of(const Graph<T>& graph, const std::int32_t* groups, std::int64_t num_groups, std::int64_t layer) {
    // The rows of the transition by group, and within a group in order.
    std::vector<std::pair<std::int32_t, std::int64_t>> rows;
    for (std::int64_t row = graph.row_offsets[layer]; row < graph.row_offsets[layer + 1]; ++row) {
        if (is_position(graph, graph.rows[row])) rows.emplace_back(groups[graph.rows[row]], row);
    }
    std::sort(rows.begin(), rows.end());

    Transition<T> result;
    std::vector<double> sums(num_groups);
    std::vector<std::uint8_t> is_touched(num_groups);
    std::vector<std::int32_t> touched;
    for (std::size_t i = 0; i < rows.size();) {
        const std::int32_t target = rows[i].first;
        double positive = 0, negative = 0;
        for (; i < rows.size() && rows[i].first == target; ++i) {
            const std::int64_t row = rows[i].second;
            const Range range = edges_of(graph, row);
            for (std::int64_t edge = range.begin; edge < range.end; ++edge) {
                const std::int64_t source = graph.columns[edge];
                if (!is_position(graph, source)) continue;
                const std::int32_t from = groups[source];
                if (!is_touched[from]) touched.push_back(from);
                is_touched[from] = 1;
                sums[from] += graph.weights[edge];
            }
            positive += graph.dropped[2 * row];
            negative += graph.dropped[2 * row + 1];
        }
        std::sort(touched.begin(), touched.end());
        result.begin_row(target);
        for (const std::int32_t from : touched) {
            result.add(from, sums[from]);
            sums[from] = 0;
            is_touched[from] = 0;
        }
        result.end_row(positive, negative);
        touched.clear();
    }
    return result;
}

}  // namespace

template <class T>
Combined<T> difference(const Graph<T>& a, const Graph<T>& b) {
    std::vector<Transition<T>> transitions(a.layers);
    parallel_for(a.layers, [&](std::int64_t layer) { transitions[layer] = difference_of(a, b, layer); });
    return joined(transitions);
}

template <class T>
Combined<T> group(const Graph<T>& graph, const std::int32_t* groups, std::int64_t num_groups) {
    std::vector<Transition<T>> transitions(graph.layers);
    parallel_for(graph.layers, [&](std::int64_t layer) {
        transitions[layer] = group_of(graph, groups, num_groups, layer);
    });
    return joined(transitions);
}

template Combined<float> difference(const Graph<float>&, const Graph<float>&);
template Combined<double> difference(const Graph<double>&, const Graph<double>&);
template Combined<float> group(const Graph<float>&, const std::int32_t*, std::int64_t);
template Combined<double> group(const Graph<double>&, const std::int32_t*, std::int64_t);

}  // namespace lrp_fast
