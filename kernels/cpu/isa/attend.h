// The KV cache's formats, and attention of a block of queries of one sequence over the cells of one KV head.
//
// Softmax is online over tiles of cells, started anew every kAttendSplit cells and merged. Tiles start at multiples of
// kAttendTile, and a cell that a query does not see adds nothing to the last bit: what a query gets depends neither on the
// queries beside it nor on which thread took which part of the cells.
#pragma once

#include <type_traits>

namespace hetrun::cpu {
namespace {

#ifndef HETRUN_VECTOR_HALF
inline uint16_t float_to_half_bits(float f) {
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00);
    if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00);
    if (magnitude < 0x38800000u) {  // subnormal: the sum with 0.5 holds the mantissa in its last bits, rounded to even
        float shifted;
        std::memcpy(&shifted, &magnitude, 4);
        shifted += 0.5f;
        std::memcpy(&bits, &shifted, 4);
        return static_cast<uint16_t>(sign | (bits - 0x3f000000u));
    }
    const uint32_t rounded = magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1);
    return static_cast<uint16_t>(sign | rounded >> 13);
}
#endif

inline void narrow_half(const float* x, size_t n, uint8_t* out) {
#ifdef HETRUN_VECTOR_HALF
    size_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store_half(out + 2 * i, load_floats(x + i));
    if (i < n) {
        float last[kLanes] = {};
        uint8_t bytes[2 * kLanes];
        std::memcpy(last, x + i, (n - i) * sizeof(float));
        store_half(bytes, load_floats(last));
        std::memcpy(out + 2 * i, bytes, 2 * (n - i));
    }
#else
    for (size_t i = 0; i < n; ++i) {
        const uint16_t h = float_to_half_bits(x[i]);
        std::memcpy(out + 2 * i, &h, 2);
    }
#endif
}

// Unlike splat, free: x - 0 is x, whereas x + 0 is not where x is -0.
inline Vf broadcast(float x) { return x - Vf{}; }

// kLanes bytes as integers. GCC 12 makes a detour of the conversion of whole vectors.
inline Vi load_bytes(const uint8_t* p) {
#if defined(__AVX512F__)
    return reinterpret_cast<Vi>(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__)
    return reinterpret_cast<Vi>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
    typedef uint8_t Vbytes __attribute__((vector_size(kLanes)));
    Vbytes v;
    std::memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, Vi);
#endif
}
inline Vf int_floats(Vi v) { return __builtin_convertvector(v, Vf); }
inline Vf load_codes(const uint8_t* p) {
#if defined(__AVX2__)
    return int_floats(load_i8(p));
#else
    return int_floats((load_bytes(p) ^ 0x80) - 0x80);
#endif
}
// The lower and the upper four bits of what load_bytes gave.
#if defined(__AVX512F__)
alignas(64) const float kNibbleFloats[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
// A lookup minds no other bits.
inline Vf low_nibbles(Vi bytes) { return _mm512_maskz_permutexvar_ps(0xffff, (__m512i)bytes, load_floats(kNibbleFloats)); }
inline Vf high_nibbles(Vi bytes) { return low_nibbles(bytes >> 4); }
#else
inline Vf low_nibbles(Vi bytes) { return int_floats(bytes & 15); }
inline Vf high_nibbles(Vi bytes) { return int_floats(bytes >> 4); }
#endif

// x <- x H / sqrt(n), H the Hadamard matrix in the order of Sylvester: its own inverse. n is a power of two.
void hadamard(float* x, size_t n) {
    for (size_t apart = 1; apart < n; apart *= 2) {
        for (size_t base = 0; base < n; base += 2 * apart) {
            for (size_t i = base; i < base + apart; ++i) {
                const float a = x[i], b = x[i + apart];
                x[i] = a + b;
                x[i + apart] = a - b;
            }
        }
    }
    const float factor = 1.0f / __builtin_sqrtf(static_cast<float>(n));
    for (size_t i = 0; i < n; ++i) x[i] *= factor;
}

struct Codes8 {
    float scale;  // NaN where the block holds a NaN or an infinity
    uint8_t codes[32];
};

inline Codes8 quantize_q8(const float* x) {
    Codes8 out;
    float largest = 0.0f, poison = 0.0f;
    for (size_t i = 0; i < 32; ++i) {
        const float magnitude = __builtin_fabsf(x[i]);
        largest = magnitude > largest ? magnitude : largest;
        poison += magnitude * 0.0f;
    }
    out.scale = largest / 127.0f + poison;
    const bool flat = !(largest > 1e-35f) || !(poison == 0.0f);
    const float inverse = flat ? 0.0f : 127.0f / largest;
    for (size_t i = 0; i < 32; ++i) {
        const float rounded = flat ? kRound : x[i] * inverse + kRound;
        int32_t q;
        std::memcpy(&q, &rounded, 4);
        out.codes[i] = static_cast<uint8_t>(q - 0x4b400000);
    }
    return out;
}

// kv4: x = minimum + scale * code. Both are rounded to halves before the codes are chosen.
struct Range4 {
    float minimum, scale, inverse;

    uint8_t code(float x) const {
        const float steps = (x - minimum) * inverse;
        const float bounded = steps > 0.0f ? (steps < 15.0f ? steps : 15.0f) : 0.0f;  // a NaN gives 0
        return static_cast<uint8_t>(bounded + 0.5f);
    }
};

inline Range4 range_kv4(const float* x, size_t n, uint8_t* bytes) {
    float lowest = x[0], highest = x[0], poison = 0.0f;
    for (size_t i = 0; i < n; ++i) {
        lowest = x[i] < lowest ? x[i] : lowest;
        highest = x[i] > highest ? x[i] : highest;
        poison += x[i] * 0.0f;  // NaN where a NaN or an infinity is among them
    }
    const float both[2] = {(highest - lowest) / 15.0f + poison, lowest + poison};
    narrow_half(both, 2, bytes);
    Range4 range;
    range.scale = half(bytes);
    range.minimum = half(bytes + 2);
    range.inverse = range.scale > 0.0f ? 1.0f / range.scale : 0.0f;
    return range;
}

// Keys lie in groups of kKeyGroup cells, element by element, so that the lanes of a vector are keys.
void kv_store_key(KvFormat format, float* x, size_t head_dim, uint8_t* group, size_t lane, uint8_t* row) {
    if (format == KvFormat::KV4H) hadamard(x, head_dim);
    if (format == KvFormat::F32) {
        for (size_t i = 0; i < head_dim; ++i) std::memcpy(group + (i * kKeyGroup + lane) * 4, x + i, 4);
    } else if (format == KvFormat::F16) {
        narrow_half(x, head_dim, row);
        for (size_t i = 0; i < head_dim; ++i) std::memcpy(group + (i * kKeyGroup + lane) * 2, row + 2 * i, 2);
    } else if (format == KvFormat::Q8_0) {
        for (size_t b = 0; b < head_dim / 32; ++b) {
            const Codes8 q = quantize_q8(x + 32 * b);
            narrow_half(&q.scale, 1, group + 2 * lane);
            group += 2 * kKeyGroup;
            for (size_t i = 0; i < 32; ++i) group[i * kKeyGroup + lane] = q.codes[i];
            group += 32 * kKeyGroup;
        }
    } else {
        uint8_t bytes[4];
        const Range4 range = range_kv4(x, head_dim, bytes);
        std::memcpy(group + 2 * lane, bytes, 2);
        std::memcpy(group + 2 * (kKeyGroup + lane), bytes + 2, 2);
        group += 4 * kKeyGroup;
        for (size_t i = 0; i < head_dim / 2; ++i)
            group[i * kKeyGroup + lane] =
                static_cast<uint8_t>(range.code(x[i]) | range.code(x[i + head_dim / 2]) << 4);
    }
}

void kv_store_value(KvFormat format, float* x, size_t head_dim, uint8_t* out) {
    if (format == KvFormat::KV4H) hadamard(x, head_dim);
    if (format == KvFormat::F32) {
        std::memcpy(out, x, head_dim * sizeof(float));
    } else if (format == KvFormat::F16) {
        narrow_half(x, head_dim, out);
    } else if (format == KvFormat::Q8_0) {
        for (size_t b = 0; b < head_dim / 32; ++b) {
            const Codes8 q = quantize_q8(x + 32 * b);
            narrow_half(&q.scale, 1, out + 34 * b);
            std::memcpy(out + 34 * b + 2, q.codes, 32);
        }
    } else {
        const Range4 range = range_kv4(x, head_dim, out);
        for (size_t i = 0; i < head_dim / 2; ++i)
            out[4 + i] = static_cast<uint8_t>(range.code(x[i]) | range.code(x[i + head_dim / 2]) << 4);
    }
}

// One group of keys as floats: out[i][lane], rows kAttendTile apart.
inline void widen_keys(KvFormat format, const uint8_t* group, size_t head_dim, float* out) {
    for (size_t lane = 0; lane < kKeyGroup; lane += kLanes) {
        const uint8_t* p = group;
        float* to = out + lane;
        if (format == KvFormat::F32) {
            for (size_t i = 0; i < head_dim; ++i, to += kAttendTile)
                std::memcpy(to, p + (i * kKeyGroup + lane) * 4, kLanes * sizeof(float));
        } else if (format == KvFormat::F16) {
            for (size_t i = 0; i < head_dim; ++i, to += kAttendTile)
                store_floats(to, load_half(p + (i * kKeyGroup + lane) * 2));
        } else if (format == KvFormat::Q8_0) {
            for (size_t b = 0; b < head_dim / 32; ++b) {
                const Vf scale = load_half(p + 2 * lane);
                p += 2 * kKeyGroup;
                for (size_t i = 0; i < 32; ++i, to += kAttendTile)
                    store_floats(to, load_codes(p + i * kKeyGroup + lane) * scale);
                p += 32 * kKeyGroup;
            }
        } else {
            const Vf scale = load_half(p + 2 * lane), minimum = load_half(p + 2 * (kKeyGroup + lane));
            p += 4 * kKeyGroup;
            float* high = to + head_dim / 2 * kAttendTile;
            for (size_t i = 0; i < head_dim / 2; ++i, to += kAttendTile, high += kAttendTile) {
                const Vi pair = load_bytes(p + i * kKeyGroup + lane);
                store_floats(to, fmadd(low_nibbles(pair), scale, minimum));
                store_floats(high, fmadd(high_nibbles(pair), scale, minimum));
            }
        }
    }
}

// One value as floats; what lies beyond head_dim is zero.
inline void widen_value(KvFormat format, const uint8_t* row, size_t head_dim, size_t padded, float* out) {
    if (format == KvFormat::F32) {
        std::memcpy(out, row, head_dim * sizeof(float));
    } else if (format == KvFormat::F16) {
        size_t i = 0;
        for (; i + kLanes <= head_dim; i += kLanes) store_floats(out + i, load_half(row + 2 * i));
        for (; i < head_dim; ++i) out[i] = half(row + 2 * i);
    } else if (format == KvFormat::Q8_0) {
        for (size_t b = 0; b < head_dim / 32; ++b, row += 34) {
            const Vf scale = broadcast(half(row));
            for (size_t i = 0; i < 32; i += kLanes) store_floats(out + 32 * b + i, load_codes(row + 2 + i) * scale);
        }
    } else {
        const float scale = half(row), minimum = half(row + 2);
        const size_t middle = head_dim / 2;
        row += 4;
        size_t i = 0;
        for (; i + kLanes <= middle; i += kLanes) {
            const Vi pair = load_bytes(row + i);
            store_floats(out + i, fmadd(low_nibbles(pair), broadcast(scale), broadcast(minimum)));
            store_floats(out + middle + i, fmadd(high_nibbles(pair), broadcast(scale), broadcast(minimum)));
        }
        for (; i < middle; ++i) {
            out[i] = static_cast<float>(row[i] & 15) * scale + minimum;
            out[middle + i] = static_cast<float>(row[i] >> 4) * scale + minimum;
        }
    }
    for (size_t i = head_dim; i < padded; ++i) out[i] = 0.0f;
}

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

inline float lane_max(Vf v) {
    for (int step = static_cast<int>(kLanes) / 2; step > 0; step /= 2) {
        Vi other{};
        for (int i = 0; i < static_cast<int>(kLanes); ++i) other[i] = i ^ step;
        const Vf moved = __builtin_shuffle(v, other);
        v = moved > v ? moved : v;
    }
    return v[0];
}

// exp of what is not positive, to about 2 ulp; of 0 it is 1, and a NaN stays one.
inline Vf decay(Vf x) {
    const Vf low = broadcast(-87.0f);
    const Vf bounded = x < low ? low : x;
    const Vf shifted = fmadd(bounded, broadcast(1.44269504f), broadcast(kRound));
    const Vf k = shifted - broadcast(kRound);
    const Vf r = fmadd(k, broadcast(-1.42860677e-6f), fmadd(k, broadcast(-0.693145752f), bounded));
    Vf p = fmadd(r, broadcast(1.0f / 720.0f), broadcast(1.0f / 120.0f));
    p = fmadd(p, r, broadcast(1.0f / 24.0f));
    p = fmadd(p, r, broadcast(1.0f / 6.0f));
    p = fmadd(p, r, broadcast(0.5f));
    p = fmadd(p, r, broadcast(1.0f));
    p = fmadd(p, r, broadcast(1.0f));
    const Vf result = p * as_floats((as_ints(shifted) - splat_int(0x4b400000 - 127)) << 23);
    return x < low ? Vf{} : result;
}
// To the 11 significant bits of a half, with the range of a float.
inline Vf rounded_halves(Vf x) {
    const Vi bits = as_ints(x);
    const Vf rounded = as_floats((bits + 0xfff + (bits >> 13 & 1)) & ~0x1fff);
    return x == x ? rounded : x;
}

inline float decay_of(float x) { return decay(broadcast(x))[0]; }

inline void scale_row(float* row, size_t n, float factor) {
    for (size_t i = 0; i < n; i += kLanes) store_floats(row + i, load_floats(row + i) * broadcast(factor));
}

// Scores of one query and `count` cells from `first` on -> their probabilities by the largest score so far. The sums of the
// query shrink by as much as that has grown, and the probabilities are added to their total, lane by lane.
inline void weigh_scores(const AttendArgs& a, const CellSpan& span, size_t first, size_t count, float* scores, float* sums,
                         size_t sum_stride, float& largest) {
    const size_t until = first + count;
    const bool whole = (first >= span.begin_low && until <= span.end_low) || (first >= span.begin_high && until <= span.end_high);
    Vf top = broadcast(largest);
    Vi lane = {};
    for (size_t i = 0; i < kLanes; ++i) lane[i] = static_cast<int32_t>(i);
    for (size_t i = 0; i < count; i += kLanes) {
        Vf s = load_floats(scores + i) * broadcast(a.scale);
        if (a.soft_cap != 0.0f) s = broadcast(a.soft_cap) * hyperbolic_tangent(s / broadcast(a.soft_cap));
        if (!whole) {
            const Vi cell = lane + static_cast<int32_t>(first + i);
            const Vi seen = ((cell >= static_cast<int32_t>(span.begin_low)) & (cell < static_cast<int32_t>(span.end_low))) |
                            ((cell >= static_cast<int32_t>(span.begin_high)) & (cell < static_cast<int32_t>(span.end_high)));
            s = seen ? s : broadcast(-__builtin_inff());
        }
        store_floats(scores + i, s);
        top = s > top ? s : top;
    }
    const float now = lane_max(top);
    if (now != largest) {
        scale_row(sums, sum_stride, decay_of(largest - now));
        largest = now;
    }
    Vf total = load_floats(sums + sum_stride - kKeyGroup);
    for (size_t i = 0; i < count; i += kLanes) {
        const Vf p = decay(load_floats(scores + i) - broadcast(now));
        total += p;
        store_floats(scores + i, p);
    }
    store_floats(sums + sum_stride - kKeyGroup, total);
}

inline bool sees(const CellSpan& span, size_t cell) {
    return (cell >= span.begin_low && cell < span.end_low) || (cell >= span.begin_high && cell < span.end_high);
}

inline bool sees_any(const CellSpan& span, size_t begin, size_t end) {
    return (end > span.begin_low && begin < span.end_low) || (end > span.begin_high && begin < span.end_high);
}

inline bool all_finite(const float* x, size_t n) {
    Vf poison = {};
    for (size_t i = 0; i < n; i += kLanes) poison = fmadd(load_floats(x + i), Vf{}, poison);
    return lane_sum(poison) == 0.0f;
}

// The cells of one split. sums: [rows, sum_stride], begun anew. careful: weigh only values of cells that a query sees,
// instead of those of others with 0.
template <bool Careful>
void attend_split(const AttendArgs& a, size_t begin, size_t end, float* sums, float* largest) {
    const size_t padded = round_up(a.head_dim, 16), sum_stride = attend_sum_stride(a.head_dim);
    const size_t n_rows = a.n_tokens * a.n_heads, row_bytes = kv_row_bytes(a.format, a.head_dim);
    const uint8_t* stored_keys = a.keys + begin / kAttendSplit * a.split_bytes;  // of the split
    const uint8_t* stored_values = a.values + begin / kAttendSplit * a.split_bytes;
    const bool at_end = end == a.end && a.next_keys;
    const uint8_t* after_keys = at_end ? a.next_keys : stored_keys + a.split_bytes;
    const uint8_t* after_values = at_end ? a.next_values : stored_values + a.split_bytes;
    float* keys = a.scratch;                            // [head_dim, kAttendTile]
    float* values = keys + a.head_dim * kAttendTile;    // [kAttendTile, padded]
    float* scores = values + kAttendTile * padded;      // [rows, kAttendTile]
    for (size_t i = 0; i < n_rows * sum_stride; ++i) sums[i] = 0.0f;
    for (size_t r = 0; r < n_rows; ++r) largest[r] = kLowestScore;

    for (size_t first = begin; first < end; first += kAttendTile) {
        // The tokens that see a cell of the tile: the later ones, or where the window has passed it the earlier ones.
        size_t from = 0, to = a.n_tokens, last = 0;
        const size_t full = first + kAttendTile < end ? first + kAttendTile : end;
        while (from < to && !sees_any(a.spans[from], first, full)) ++from;
        while (to > from && !sees_any(a.spans[to - 1], first, full)) --to;
        if (from == to) continue;
        for (size_t t = from; t < to; ++t) {
            const CellSpan& s = a.spans[t];
            const size_t until = s.end_high > first && s.begin_high < full ? s.end_high : s.end_low;
            last = until > last ? until : last;
        }
        const size_t count = round_up((last < full ? last : full) - first, kKeyGroup);
        const uint8_t* tile_keys = stored_keys + (first - begin) * row_bytes;
        const uint8_t* tile_values = stored_values + (first - begin) * row_bytes;
        const bool last_tile = full == end;
        const uint8_t* next_keys = last_tile ? after_keys : tile_keys + kAttendTile * row_bytes;
        const uint8_t* next_values = last_tile ? after_values : tile_values + kAttendTile * row_bytes;
        const size_t row = from * a.n_heads, rows = (to - from) * a.n_heads;
        const float* q = a.q + row * padded;
        float* out = sums + row * sum_stride;
        const auto weigh = [&] {
            for (size_t r = 0; r < rows; ++r)
                weigh_scores(a, a.spans[(row + r) / a.n_heads], first, count, scores + r * kAttendTile, out + r * sum_stride,
                             sum_stride, largest[row + r]);
        };
        if (!Careful && reads_directly(a.format, a.head_dim, rows)) {
            direct_rows(a.format, rows, [&](auto form, auto block, size_t r) {
                score_tile<form(), block()>(q + r * padded, padded, tile_keys, next_keys, row_bytes, count, a.head_dim,
                                            scores + r * kAttendTile);
            });
            weigh();
            direct_rows(a.format, rows, [&](auto form, auto block, size_t r) {
                value_tile<form(), block()>(scores + r * kAttendTile, tile_values, next_values, row_bytes, count, a.head_dim,
                                            out + r * sum_stride, sum_stride);
            });
            continue;
        }
        for (size_t i = 0; i < count; i += kKeyGroup) {
            prefetch(next_keys + i * row_bytes, kKeyGroup * row_bytes);
            prefetch(next_values + i * row_bytes, kKeyGroup * row_bytes);
            widen_keys(a.format, tile_keys + i * row_bytes, a.head_dim, keys + i);
        }
        multiply(rows, count, q, padded, keys, kAttendTile, a.head_dim, scores, kAttendTile, false);
        weigh();
        for (size_t i = 0; i < count; ++i)
            widen_value(a.format, tile_values + i * row_bytes, a.head_dim, padded, values + i * padded);
        if (!Careful) {
            multiply(rows, padded, scores, kAttendTile, values, padded, count, out, sum_stride, true);
            continue;
        }
        for (size_t r = 0; r < rows; ++r)
            for (size_t i = 0; i < count; ++i)
                if (sees(a.spans[(row + r) / a.n_heads], first + i))
                    multiply(1, padded, scores + r * kAttendTile + i, kAttendTile, values + i * padded, padded, 1,
                             out + r * sum_stride, sum_stride, true);
    }
    // A NaN or an infinity of a cell that a query does not see is none of its business, not even times 0.
    if (!Careful && !all_finite(sums, n_rows * sum_stride)) attend_split<true>(a, begin, end, sums, largest);
}

void attend_merge(size_t head_dim, float* sums, float& largest, float* other, float other_largest) {
    const size_t n = attend_sum_stride(head_dim);
    const float now = other_largest > largest ? other_largest : largest;
    const float own_factor = decay_of(largest - now), other_factor = decay_of(other_largest - now);
    for (size_t i = 0; i < n; i += kLanes)
        store_floats(sums + i, fmadd(load_floats(other + i), broadcast(other_factor),
                                     load_floats(sums + i) * broadcast(own_factor)));
    largest = now;
}

void attend(const AttendArgs& a) {
    if (a.format == KvFormat::F16) {
        // Queries as precise as keys, as in llama.cpp: rounding alike keeps results within the noise that its own batch
        // sizes have.
        const size_t n = a.n_tokens * a.n_heads * round_up(a.head_dim, 16);
        for (size_t i = 0; i < n; i += kLanes) store_floats(a.q + i, rounded_halves(load_floats(a.q + i)));
    }
    const size_t n_rows = a.n_tokens * a.n_heads, sum_stride = attend_sum_stride(a.head_dim);
    float* part = a.scratch + attend_tile_floats(a.head_dim, n_rows);  // sums of a split, then their largest scores
    bool first = true;
    for (size_t begin = a.begin; begin < a.end; begin += kAttendSplit) {
        const size_t end = begin + kAttendSplit < a.end ? begin + kAttendSplit : a.end;
        bool any = false;
        for (size_t t = 0; t < a.n_tokens; ++t) any = any || sees_any(a.spans[t], begin, end);
        if (!any && !(first && end == a.end)) continue;
        if (first) {
            attend_split<false>(a, begin, end, a.sums, a.largest);
        } else {
            float* largest = part + n_rows * sum_stride;
            attend_split<false>(a, begin, end, part, largest);
            for (size_t r = 0; r < n_rows; ++r)
                attend_merge(a.head_dim, a.sums + r * sum_stride, a.largest[r], part + r * sum_stride, largest[r]);
        }
        first = false;
    }
}

void attend_finish(KvFormat format, size_t head_dim, float* sums, float* out) {
    const size_t padded = round_up(head_dim, 16);
    scale_row(sums, padded, 1.0f / lane_sum(load_floats(sums + padded)));
    if (format == KvFormat::KV4H) hadamard(sums, head_dim);
    std::memcpy(out, sums, head_dim * sizeof(float));
}

}  // namespace
}  // namespace hetrun::cpu
