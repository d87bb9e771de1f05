#include "edges.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "attention_pack.hpp"
#include "parallel.hpp"

namespace lrp_fast {
namespace {

struct Rows {  // some of those given: a tile
    std::int64_t begin, end;
};

// At most 64 rows each, and of one tile of queries where the tiles tell what is left out.
std::vector<Rows> divide(const EdgesGiven& given) {
    std::vector<Rows> found;
    for (std::int64_t begin = 0, end = 0; begin < given.num_rows; begin = end) {
        const auto joins = [&](std::int64_t row) {
            return row < given.num_rows && row - begin < kTile &&
                   (!given.tiles || given.rows[row] / kTile == given.rows[begin] / kTile);
        };
        while (joins(end)) ++end;
        found.push_back({begin, end});
    }
    return found;
}

class Work {
public:
    Work(const AttentionShape& shape, const EdgesGiven& given, float* work, int threads, std::int64_t lanes)
        : shape_(shape), given_(given), edges_(edges_of(shape.features, lanes)), columns_(attention_tiles(shape.keys)),
          size_(kTile * shape.features), group_(shape.heads / shape.key_heads), work_(work), threads_(threads),
          rows_(divide(given)) {
        if (!edges_) throw std::runtime_error(kUnserved);
        const Tokens<const float>* const all[] = {&given.key, &given.value, &given.key_part, &given.value_part};
        for (const auto* one : all) place_.push_back(one->data ? parts_++ : -1);
        for (int part = 0; part < 4; ++part) {
            if (given.packed || place_[part] < 0) continue;
            turn_all(*all[part], shape.key_heads, shape.keys, shape.features, turned(part, 0, 0), threads);
        }
    }

    // use(rows, low, high, edges): edges (rows, high - low), the keys that any of these rows reads.
    template <class Use>
    void each(const Use& use) {
        parallel_for(static_cast<std::int64_t>(rows_.size()), [&](std::int64_t n) {
            const Rows& rows = rows_[rows_.size() - 1 - n];  // those that read most come first
            compute(rows, use);
        }, threads_);
    }

private:
    float* turned(int part, std::int64_t head, std::int64_t j) {
        return work_ + ((place_[part] * shape_.key_heads + head) * columns_ + j) * size_;
    }

    template <class Use>
    void compute(const Rows& rows, const Use& use) {
        const std::int64_t features = shape_.features, count = rows.end - rows.begin;
        const Buffer packed = buffer(2 * shape_.heads * size_), room = buffer(5 * kTile * kTile);
        std::vector<float> lse(shape_.heads * kTile), passed(shape_.heads * kTile);
        EdgeQueries tile{};
        tile.count = count;
        for (std::int64_t r = 0; r < count; ++r) {
            const std::int64_t query = given_.rows[rows.begin + r], position = query + shape_.keys - shape_.queries;
            tile.from[r] = std::max<std::int64_t>(0, position - shape_.behind + 1);
            tile.to[r] = std::min(shape_.keys, position + shape_.ahead);
            for (std::int64_t head = 0; head < shape_.heads; ++head) {
                float* const q = packed.get() + 2 * head * size_ + r * features;
                float* const u = q + size_;
                const float* const from = given_.query.at(head, query);
                for (std::int64_t d = 0; d < features; ++d) q[d] = from[d] * shape_.scale;
                std::copy_n(given_.g.at(head, query), features, u);
                lse[head * kTile + r] = given_.lse[head * shape_.queries + query];
                passed[head * kTile + r] = dot(u, given_.out.at(head, query), features);
            }
        }
        for (std::int64_t head = 0; head < shape_.heads; ++head) {  // what a product reads beside them
            for (int part = 0; part < 2; ++part) {
                float* const first = packed.get() + (2 * head + part) * size_;
                std::fill(first + count * features, first + size_, 0.0f);
            }
        }
        const std::int64_t low = tile.from[0], high = tile.to[count - 1], width = high - low;
        const Buffer edges = buffer(count * width);
        float* const sum = room.get() + 4 * kTile * kTile;
        for (std::int64_t j = low / kTile; j < attention_tiles(high); ++j) {
            std::fill(sum, sum + kTile * kTile, 0.0f);
            for (std::int64_t head = 0; head < shape_.heads; ++head) {
                if (given_.tiles && !given_.tiles[(head * attention_tiles(shape_.queries) +
                                                   given_.rows[rows.begin] / kTile) * columns_ + j]) {
                    continue;
                }
                tile.query = packed.get() + 2 * head * size_;
                tile.u = tile.query + size_;
                tile.lse = lse.data() + head * kTile;
                tile.passed = passed.data() + head * kTile;
                const std::int64_t own = head / group_;
                const EdgeKeys keys{turned(0, own, j), turned(1, own, j),
                                    place_[2] < 0 ? nullptr : turned(2, own, j),
                                    place_[3] < 0 ? nullptr : turned(3, own, j), j * kTile};
                edges_(tile, keys, features, given_.ratio, room.get(), sum);
            }
            const std::int64_t begin = std::max(low, j * kTile), end = std::min(high, (j + 1) * kTile);
            for (std::int64_t r = 0; r < count; ++r) {
                for (std::int64_t key = begin; key < end; ++key) {
                    edges[r * width + key - low] = sum[r * kTile + key - j * kTile] * given_.share;
                }
            }
        }
        use(rows, low, high, edges.get());
    }

    const AttentionShape& shape_;
    const EdgesGiven& given_;
    const Edges edges_;
    const std::int64_t columns_, size_, group_;
    float* const work_;
    const int threads_;
    const std::vector<Rows> rows_;
    std::vector<std::int64_t> place_;
    std::int64_t parts_ = 0;
};

// |x| as an integer, which orders as |x| does; a NaN is the largest.
std::uint32_t magnitude(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits & 0x7fffffffu;
}

struct Candidate {
    std::uint32_t size;
    std::int32_t column;

    bool operator<(const Candidate& other) const {  // the stronger first, of equal ones the one to the left
        return size != other.size ? size > other.size : column < other.column;
    }
};

// The k strongest of a row, without zeros, by columns.
void choose(const float* row, std::int64_t width, std::int64_t k, std::vector<Candidate>& found) {
    found.clear();
    std::uint32_t least = 0;  // none that is not larger can be among them any more
    const auto most = static_cast<std::size_t>(2 * k + 64);
    const auto cut = [&] {
        if (static_cast<std::int64_t>(found.size()) <= k) return;
        std::nth_element(found.begin(), found.begin() + k, found.end());
        found.resize(k);
        if (k) least = std::max_element(found.begin(), found.end())->size;
    };
    for (std::int64_t j = 0; k && j < width; ++j) {
        const std::uint32_t size = magnitude(row[j]);
        if (size <= least) continue;
        found.push_back({size, static_cast<std::int32_t>(j)});
        if (found.size() >= most) cut();
    }
    cut();
    std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.column < b.column; });
}

}  // namespace

std::int64_t attention_edges_floats(const AttentionShape& shape, bool key_part, bool value_part) {
    return (2 + key_part + value_part) * shape.key_heads * attention_tiles(shape.keys) * kTile * shape.features;
}

void attention_edges(const AttentionShape& shape, const EdgesGiven& given, std::int64_t low, std::int64_t high,
                     float* edges, float* work, int threads, std::int64_t lanes) {
    Work(shape, given, work, threads, lanes).each(
        [&](const Rows& rows, std::int64_t begin, std::int64_t end, const float* found) {
            for (std::int64_t r = rows.begin; r < rows.end; ++r, found += end - begin) {
                float* const row = edges + r * (high - low);
                std::fill(row, row + begin - low, 0.0f);
                std::copy_n(found, end - begin, row + begin - low);
                std::fill(row + end - low, row + high - low, 0.0f);
            }
        });
}

void attention_edges_strongest(const AttentionShape& shape, const EdgesGiven& given, std::int64_t k,
                               std::int32_t* columns, float* weights, float* dropped, float* work, int threads,
                               std::int64_t lanes) {
    Work(shape, given, work, threads, lanes).each(
        [&](const Rows& rows, std::int64_t low, std::int64_t high, float* found) {
            std::vector<Candidate> chosen;
            for (std::int64_t r = rows.begin; r < rows.end; ++r, found += high - low) {
                choose(found, high - low, k, chosen);
                std::int32_t* column = columns + r * k;
                float* weight = weights + r * k;
                for (const Candidate& one : chosen) {
                    *column++ = one.column + static_cast<std::int32_t>(low);
                    *weight++ = found[one.column];
                    found[one.column] = 0;
                }
                std::fill(column, columns + (r + 1) * k, 0);
                std::fill(weight, weights + (r + 1) * k, 0.0f);
                double plus = 0, minus = 0;
                for (std::int64_t j = 0; j < high - low; ++j) {  // a NaN goes into both
                    plus += found[j] < 0 ? 0.0f : found[j];
                    minus += found[j] > 0 ? 0.0f : found[j];
                }
                dropped[2 * r] = static_cast<float>(plus);
                dropped[2 * r + 1] = static_cast<float>(minus);
            }
        });
}

}  // namespace lrp_fast
