// Products of attention: of floats, and of queries with keys and weights with values as the cache has them.
#pragma once

#include <type_traits>

namespace hetrun::cpu {
namespace {

// c[r][...] = or += the sum over k of a[r][k] * b[k][...], in order of k: R rows and V vectors stay in registers.
template <int R, int V>
inline void multiply_block(const float* a, size_t a_stride, const float* b, size_t b_stride, size_t depth, float* c,
                           size_t c_stride, bool add) {
    Vf acc[R][V];
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) acc[r][v] = add ? load_floats(c + r * c_stride + v * kLanes) : Vf{};
    for (size_t k = 0; k < depth; ++k) {
        Vf column[V];
        for (int v = 0; v < V; ++v) column[v] = load_floats(b + k * b_stride + v * kLanes);
        for (int r = 0; r < R; ++r) {
            const Vf factor = broadcast(a[r * a_stride + k]);
            for (int v = 0; v < V; ++v) acc[r][v] = fmadd(factor, column[v], acc[r][v]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) store_floats(c + r * c_stride + v * kLanes, acc[r][v]);
}

template <int V>
inline void multiply_columns(size_t n_rows, const float* a, size_t a_stride, const float* b, size_t b_stride, size_t depth,
                             float* c, size_t c_stride, bool add) {
    size_t r = 0;
    for (; r + 6 <= n_rows; r += 6)
        multiply_block<6, V>(a + r * a_stride, a_stride, b, b_stride, depth, c + r * c_stride, c_stride, add);
    for (; r + 3 <= n_rows; r += 3)
        multiply_block<3, V>(a + r * a_stride, a_stride, b, b_stride, depth, c + r * c_stride, c_stride, add);
    for (; r < n_rows; ++r)
        multiply_block<1, V>(a + r * a_stride, a_stride, b, b_stride, depth, c + r * c_stride, c_stride, add);
}

// As many vectors as leave room for 6 rows of sums in the registers.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr size_t kColumns = 4;
#else
constexpr size_t kColumns = 2;
#endif

// n_columns is a multiple of 16.
inline void multiply(size_t n_rows, size_t n_columns, const float* a, size_t a_stride, const float* b, size_t b_stride,
                     size_t depth, float* c, size_t c_stride, bool add) {
    size_t j = 0;
    for (; j + kColumns * kLanes <= n_columns; j += kColumns * kLanes)
        multiply_columns<kColumns>(n_rows, a, a_stride, b + j, b_stride, depth, c + j, c_stride, add);
    for (; j < n_columns; j += kLanes)
        multiply_columns<1>(n_rows, a, a_stride, b + j, b_stride, depth, c + j, c_stride, add);
}

// Few queries read keys and values as they are stored: widening them into the scratch would cost as much as the products.
// Each product is that of `multiply` with what widen_keys and widen_value give, to the last bit.
constexpr size_t kDirectRows = 8;
constexpr int kDirectBlock = 4;  // rows whose sums stay in registers

inline bool reads_directly(KvFormat format, size_t head_dim, size_t n_rows) {
    return n_rows <= kDirectRows && format != KvFormat::F32 && head_dim % 32 == 0;
}

// What is read after the tile at hand is asked for step by step: the machine foresees no stream that changes so often.
template <KvFormat F, int V>
inline void fetch_step(const uint8_t* next) {
    constexpr size_t kBytes = V * kLanes * (F == KvFormat::F16 ? 4 : F == KvFormat::Q8_0 ? 2 : 1) / 2;
    for (size_t i = 0; i < kBytes; i += 64) __builtin_prefetch(next + i);
}

// sums[r] += factors[r] * columns
template <int R, int V>
inline void add_products(Vf (&sums)[R][V], const float* factors, size_t stride, const Vf (&columns)[V]) {
    for (int r = 0; r < R; ++r) {
        const Vf factor = broadcast(factors[r * stride]);
        for (int v = 0; v < V; ++v) sums[r][v] = fmadd(factor, columns[v], sums[r][v]);
    }
}

// scores[R][V * kLanes]: q[R] times the keys of V vectors, which begin at a lane of the group.
template <KvFormat F, int R, int V>
inline void score_block(const float* q, size_t q_stride, const uint8_t* group, size_t group_bytes, size_t lane,
                        size_t head_dim, float* scores, const uint8_t* next, size_t next_step) {
    Vf sums[R][V];
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) sums[r][v] = Vf{};
    const uint8_t* p[V];
    Vf columns[V];
    for (int v = 0; v < V; ++v) p[v] = group + v * kLanes / kKeyGroup * group_bytes;
    const auto own_lane = [lane](int v) { return (lane + v * kLanes) % kKeyGroup; };
    if constexpr (F == KvFormat::F16) {
        for (size_t i = 0; i < head_dim; ++i) {
            for (int v = 0; v < V; ++v) columns[v] = load_half(p[v] + (i * kKeyGroup + own_lane(v)) * 2);
            add_products(sums, q + i, q_stride, columns);
            fetch_step<F, V>(next + i * next_step);
        }
    } else if constexpr (F == KvFormat::Q8_0) {
        for (size_t b = 0; b < head_dim; b += 32) {
            Vf scale[V];
            for (int v = 0; v < V; ++v) {
                scale[v] = load_half(p[v] + 2 * own_lane(v));
                p[v] += 2 * kKeyGroup;
            }
            for (size_t i = 0; i < 32; ++i) {
                for (int v = 0; v < V; ++v) columns[v] = load_codes(p[v] + i * kKeyGroup + own_lane(v)) * scale[v];
                add_products(sums, q + b + i, q_stride, columns);
                fetch_step<F, V>(next + (b + i) * next_step);
            }
            for (int v = 0; v < V; ++v) p[v] += 32 * kKeyGroup;
        }
    } else {
        Vf scale[V], minimum[V];
        for (int v = 0; v < V; ++v) {
            scale[v] = load_half(p[v] + 2 * own_lane(v));
            minimum[v] = load_half(p[v] + 2 * (kKeyGroup + own_lane(v)));
            p[v] += 4 * kKeyGroup;
        }
        const size_t middle = head_dim / 2;
        for (size_t i = 0; i < middle; ++i) {
            for (int v = 0; v < V; ++v)
                columns[v] = fmadd(low_nibbles(load_bytes(p[v] + i * kKeyGroup + own_lane(v))), scale[v], minimum[v]);
            add_products(sums, q + i, q_stride, columns);
            fetch_step<F, V>(next + i * next_step);
        }
        next += middle * next_step;
        for (size_t i = 0; i < middle; ++i) {
            for (int v = 0; v < V; ++v)
                columns[v] = fmadd(high_nibbles(load_bytes(p[v] + i * kKeyGroup + own_lane(v))), scale[v], minimum[v]);
            add_products(sums, q + middle + i, q_stride, columns);
            fetch_step<F, V>(next + i * next_step);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) store_floats(scores + r * kAttendTile + v * kLanes, sums[r][v]);
}

template <KvFormat F, int R>
inline void score_tile(const float* q, size_t q_stride, const uint8_t* keys, const uint8_t* next, size_t row_bytes, size_t count,
                       size_t head_dim, float* scores) {
    const size_t group_bytes = kKeyGroup * row_bytes;
    size_t i = 0;
    for (; i + kColumns * kLanes <= count; i += kColumns * kLanes)
        score_block<F, R, kColumns>(q, q_stride, keys + i / kKeyGroup * group_bytes, group_bytes, i % kKeyGroup, head_dim,
                                    scores + i, next + i * row_bytes, kColumns * kLanes * row_bytes / head_dim);
    for (; i < count; i += kLanes)
        score_block<F, R, 1>(q, q_stride, keys + i / kKeyGroup * group_bytes, group_bytes, i % kKeyGroup, head_dim, scores + i,
                             next + i * row_bytes, kLanes * row_bytes / head_dim);
}

// sums[R][j ... j + V * kLanes] += weights[R][count] times those columns of the values.
template <KvFormat F, int R, int V>
inline void value_block(const float* weights, const uint8_t* row, size_t row_bytes, size_t count, size_t head_dim, size_t j,
                        float* out, size_t out_stride, const uint8_t* next) {
    Vf sums[R][V];
    Vf columns[V];
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) sums[r][v] = load_floats(out + r * out_stride + j + v * kLanes);
    for (size_t i = 0; i < count; ++i, row += row_bytes) {
        if constexpr (F == KvFormat::F16) {
            for (int v = 0; v < V; ++v) columns[v] = load_half(row + 2 * (j + v * kLanes));
        } else if constexpr (F == KvFormat::Q8_0) {
            for (int v = 0; v < V; ++v) {
                const size_t at = j + v * kLanes;
                const uint8_t* block = row + at / 32 * 34;
                columns[v] = load_codes(block + 2 + at % 32) * broadcast(half(block));
            }
        } else {
            const Vf scale = broadcast(half(row)), minimum = broadcast(half(row + 2));
            const size_t middle = head_dim / 2;
            for (int v = 0; v < V; ++v) {
                const size_t at = j + v * kLanes;
                columns[v] = fmadd(at < middle ? low_nibbles(load_bytes(row + 4 + at)) : high_nibbles(load_bytes(row + 4 + at - middle)),
                                   scale, minimum);
            }
        }
        add_products(sums, weights + i, kAttendTile, columns);
        fetch_step<F, V>(next + i * row_bytes);
    }
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) store_floats(out + r * out_stride + j + v * kLanes, sums[r][v]);
}

template <KvFormat F, int R>
inline void value_tile(const float* weights, const uint8_t* values, const uint8_t* next, size_t row_bytes, size_t count,
                       size_t head_dim, float* out, size_t out_stride) {
    size_t j = 0;
    for (; j + kColumns * kLanes <= head_dim; j += kColumns * kLanes)
        value_block<F, R, kColumns>(weights, values, row_bytes, count, head_dim, j, out, out_stride, next + j * row_bytes / head_dim);
    for (; j < head_dim; j += kLanes)
        value_block<F, R, 1>(weights, values, row_bytes, count, head_dim, j, out, out_stride, next + j * row_bytes / head_dim);
}

// Calls with<KvFormat, rows> for all rows, in blocks that registers hold.
template <class Call>
inline void direct_rows(KvFormat format, size_t n_rows, const Call& call) {
    const auto with = [&](auto form, size_t first, size_t rows) {
        switch (rows) {
            case 1: return call(form, std::integral_constant<int, 1>{}, first);
            case 2: return call(form, std::integral_constant<int, 2>{}, first);
            case 3: return call(form, std::integral_constant<int, 3>{}, first);
            default: return call(form, std::integral_constant<int, kDirectBlock>{}, first);
        }
    };
    const size_t n_blocks = (n_rows + kDirectBlock - 1) / kDirectBlock;
    for (size_t b = 0; b < n_blocks; ++b) {
        const size_t first = n_rows * b / n_blocks, rows = n_rows * (b + 1) / n_blocks - first;
        switch (format) {
            case KvFormat::F16: with(std::integral_constant<KvFormat, KvFormat::F16>{}, first, rows); break;
            case KvFormat::Q8_0: with(std::integral_constant<KvFormat, KvFormat::Q8_0>{}, first, rows); break;
            default: with(std::integral_constant<KvFormat, KvFormat::KV4>{}, first, rows); break;
        }
    }
}

}  // namespace
}  // namespace hetrun::cpu
