#include "attention.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <vector>

#include "attention_pack.hpp"
#include "parallel.hpp"

namespace lrp_fast {
namespace {

constexpr std::int64_t kUnits = 16;    // of work at a time: what they sum up, each has for itself
constexpr std::int64_t kCached = 256;  // keys of 64 features, whose five tiles stay in a core's cache

// How the work is divided. Some key/value heads at a time, and all their query heads: a unit of work is one query head's
// tiles of queries, every other pair of them, and sums the gradients of the keys by itself. The order of all sums is the
// shape's, whoever works.
struct Division {
    explicit Division(const AttentionShape& shape)
        : group(shape.heads / shape.key_heads), rows(attention_tiles(shape.queries)),
          columns(attention_tiles(shape.keys)), size(kTile * shape.features), slots(rows > 1 ? 2 : 1),
          parts(shape.scores ? 2 : 1),
          together(std::clamp<std::int64_t>((kUnits + group * slots - 1) / (group * slots), 1, shape.key_heads)),
          of_head(columns * size) {}

    std::int64_t group, rows, columns, size, slots, parts, together, of_head;

    std::int64_t packed() const { return 3 * together * of_head; }
    std::int64_t summed() const { return parts * together * group * slots * of_head; }
};

class Pass : Division {
public:
    Pass(const AttentionShape& shape, const AttentionGiven& given, const AttentionGradients& out, float* work,
         int threads, std::int64_t lanes)
        : Division(shape), shape_(shape), given_(given), out_(out), threads_(threads),
          visit_(visit_of(shape.features, lanes)), packed_(work), sums_(work + packed()), masses_(shape.heads * slots) {
        if (!visit_) throw std::runtime_error(kUnserved);
    }

    double run() {
        for (std::int64_t first = 0; first < shape_.key_heads; first += together) {
            const std::int64_t heads = std::min(together, shape_.key_heads - first);
            const auto each = [&](std::int64_t n, auto body) { parallel_for(n, body, threads_); };
            each(heads * columns, [&](std::int64_t n) { pack(first, n / columns, n % columns); });
            each(heads * group * slots, [&](std::int64_t n) { sum(first, n); });
            each(heads * columns, [&](std::int64_t n) { add(first, n / columns, n % columns); });
        }
        double mass = 0;
        for (const double one : masses_) mass += one;
        return mass;
    }

private:
    float* key(std::int64_t own, std::int64_t j) { return packed_ + own * of_head + j * size; }
    float* key_turned(std::int64_t own, std::int64_t j) { return key(together + own, j); }
    float* value_turned(std::int64_t own, std::int64_t j) { return key(2 * together + own, j); }
    float* d_value(std::int64_t unit, std::int64_t j) { return sums_ + parts * unit * of_head + j * size; }
    float* d_key(std::int64_t unit, std::int64_t j) { return d_value(unit, j) + of_head; }  // with scores

    void pack(std::int64_t first, std::int64_t own, std::int64_t j) {
        take(given_.value, first + own, j * kTile, shape_.keys, shape_.features, 1, key(own, j));
        turn(key(own, j), shape_.features, value_turned(own, j));
        take(given_.key, first + own, j * kTile, shape_.keys, shape_.features, 1, key(own, j));
        turn(key(own, j), shape_.features, key_turned(own, j));
    }

    void sum(std::int64_t first, std::int64_t unit) {
        const std::int64_t head = first * group + unit / slots, slot = unit % slots;
        std::fill(d_value(unit, 0), d_value(unit + 1, 0), 0.0f);
        const Buffer work = buffer(3 * size + 2 * kTile * kTile);
        TileQueries tile;
        tile.query = work.get();
        tile.g = tile.query + size;
        tile.d_query = tile.g + size;
        tile.weights = tile.d_query + size;
        tile.flow = tile.weights + kTile * kTile;
        double mass = 0;
        const std::int64_t span = std::max<std::int64_t>(1, kCached / shape_.features);
        for (std::int64_t begin = 0; begin < columns; begin += span) {
            for (std::int64_t i = 0; i < rows; ++i) {
                if ((i + 1) / 2 % slots == slot) mass += visit_row(tile, head, unit, i, begin, begin + span);
            }
        }
        masses_[head * slots + slot] = mass;
    }

    // A tile of queries and those of keys from `begin` to `end` - 1.
    double visit_row(TileQueries& tile, std::int64_t head, std::int64_t unit, std::int64_t i, std::int64_t begin,
                     std::int64_t end) {
        const std::int64_t row = i * kTile, there = std::min(kTile, shape_.queries - row);
        const std::int64_t position = row + shape_.keys - shape_.queries;  // of its first query
        begin = std::max(begin, std::max<std::int64_t>(0, position - shape_.behind + 1) / kTile);
        end = std::min({end, columns, (position + there - 1 + shape_.ahead - 1) / kTile + 1});
        const std::uint8_t* kept = given_.tiles ? given_.tiles + (head * rows + i) * columns : nullptr;
        const auto is_kept = [&](std::int64_t j) { return !kept || kept[j]; };
        while (begin < end && !is_kept(begin)) ++begin;
        if (begin >= end) return 0;
        const std::int64_t at = head * shape_.queries + row, features = shape_.features;
        take(given_.query, head, row, shape_.queries, features, shape_.scale, tile.query);
        take(given_.g, head, row, shape_.queries, features, 1, tile.g);
        for (std::int64_t r = 0; r < kTile; ++r) {
            tile.lse[r] = r < there ? given_.lse[at + r] : std::numeric_limits<float>::infinity();
            tile.passed[r] = r < there ? dot(tile.g + r * features, given_.out.at(head, row + r), features) : 0;
            tile.norm[r] = r < there && given_.norm ? given_.norm[at + r] : 0;
        }
        std::fill(tile.d_query, tile.d_query + size, 0.0f);
        double mass = 0;
        const std::int64_t own = unit / slots / group;
        for (std::int64_t j = begin; j < end; ++j) {
            if (!is_kept(j)) continue;
            const std::int64_t lag = position - j * kTile;
            TileReach reach{true, lag - shape_.behind + 1, lag + shape_.ahead, std::min(kTile, shape_.keys - j * kTile)};
            reach.cut = reach.from + kTile - 1 > 0 || reach.to < kTile || reach.there < kTile;
            const TileKeys keys{key(own, j), key_turned(own, j), value_turned(own, j),
                                shape_.scores ? d_key(unit, j) : nullptr, d_value(unit, j)};
            mass += visit_(tile, keys, reach, features);
        }
        if (shape_.scores) {
            for (std::int64_t r = 0; r < there; ++r) {
                float* const to = out_.query.at(head, row + r);
                for (std::int64_t d = 0; d < features; ++d) to[d] += tile.d_query[r * features + d] * shape_.scale;
            }
        }
        return mass;
    }

    void add(std::int64_t first, std::int64_t own, std::int64_t j) {
        const std::int64_t there = std::min(kTile, shape_.keys - j * kTile);
        for (std::int64_t unit = own * group * slots; unit < (own + 1) * group * slots; ++unit) {
            if (shape_.scores) add(d_key(unit, j), there, out_.key, first + own, j * kTile);
            add(d_value(unit, j), there, out_.value, first + own, j * kTile);
        }
    }

    void add(const float* from, std::int64_t there, const Tokens<float>& to, std::int64_t head, std::int64_t first) {
        for (std::int64_t t = 0; t < there; ++t) {
            float* const token = to.at(head, first + t);
            for (std::int64_t d = 0; d < shape_.features; ++d) token[d] += from[t * shape_.features + d];
        }
    }

    const AttentionShape& shape_;
    const AttentionGiven& given_;
    const AttentionGradients& out_;
    const int threads_;
    const Visit visit_;
    float *const packed_, *const sums_;
    std::vector<double> masses_;
};

}  // namespace

#if defined(__GNUC__) && defined(__x86_64__)

template <class Code>
static Code served(std::int64_t features, std::int64_t lanes, Code avx512, Code avx2) {
    if (features < 1 || features % 16 || features > 256 || !__builtin_cpu_supports("fma")) return nullptr;
    if (lanes != 8 && __builtin_cpu_supports("avx512f")) return avx512;
    return lanes != 16 && __builtin_cpu_supports("avx2") ? avx2 : nullptr;
}

Visit visit_of(std::int64_t features, std::int64_t lanes) {
    return served<Visit>(features, lanes, visit_avx512, visit_avx2);
}

Edges edges_of(std::int64_t features, std::int64_t lanes) {
    return served<Edges>(features, lanes, edges_avx512, edges_avx2);
}

Masses masses_of(std::int64_t features, std::int64_t lanes) {
    return served<Masses>(features, lanes, masses_avx512, masses_avx2);
}

#else

Visit visit_of(std::int64_t, std::int64_t) { return nullptr; }

Edges edges_of(std::int64_t, std::int64_t) { return nullptr; }

Masses masses_of(std::int64_t, std::int64_t) { return nullptr; }

#endif

bool attention_backward_serves(std::int64_t features, std::int64_t lanes) {
    return visit_of(features, lanes) != nullptr;
}

std::int64_t attention_backward_floats(const AttentionShape& shape) {
    const Division division(shape);
    return division.packed() + division.summed();
}

std::int64_t attention_tiles(std::int64_t n) { return (n + kTile - 1) / kTile; }

double attention_backward(const AttentionShape& shape, const AttentionGiven& given, const AttentionGradients& out,
                          float* work, int threads, std::int64_t lanes) {
    return Pass(shape, given, out, work, threads, lanes).run();
}

}  // namespace lrp_fast
