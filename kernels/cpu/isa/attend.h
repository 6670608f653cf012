// Attention of one token and the query heads of one KV head, in two passes over the keys in order of position.
#pragma once

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

void kv_store(KvFormat format, const float* x, size_t head_dim, uint8_t* out) {
    if (format == KvFormat::F32) {
        std::memcpy(out, x, head_dim * sizeof(float));
    } else if (format == KvFormat::F16) {
        narrow_half(x, head_dim, out);
    } else {
        for (size_t b = 0; b < head_dim / 32; ++b) {
            float largest = 0.0f, poison = 0.0f;
            for (size_t i = 0; i < 32; ++i) {
                const float magnitude = __builtin_fabsf(x[32 * b + i]);
                largest = magnitude > largest ? magnitude : largest;
                poison += magnitude * 0.0f;  // NaN where a NaN or an infinity is among them
            }
            const float d = largest / 127.0f + poison;
            const bool flat = !(largest > 1e-35f) || !(poison == 0.0f);
            const float inverse = flat ? 0.0f : 127.0f / largest;
            uint8_t* block = out + 34 * b;
            narrow_half(&d, 1, block);
            for (size_t i = 0; i < 32; ++i) {
                const float rounded = flat ? kRound : x[32 * b + i] * inverse + kRound;
                int32_t q;
                std::memcpy(&q, &rounded, 4);
                block[2 + i] = static_cast<uint8_t>(q - 0x4b400000);
            }
        }
    }
}

// `count` rows of the cache as floats [count, padded]; what lies beyond head_dim is zero.
inline void widen_rows(KvFormat format, const uint8_t* rows, size_t count, size_t head_dim, size_t padded, float* out) {
    for (size_t r = 0; r < count; ++r, out += padded) {
        if (format == KvFormat::F32) {
            std::memcpy(out, rows + r * head_dim * 4, head_dim * sizeof(float));
        } else if (format == KvFormat::F16) {
            RowF16::widen(rows + r * head_dim * 2, head_dim, out);
        } else {
            dequantize_codes<CodecQ8_0>(rows + r * (head_dim / 32 * 34), head_dim, out);
        }
        for (size_t i = head_dim; i < padded; ++i) out[i] = 0.0f;
    }
}

inline float dot_floats(const float* a, const float* b, size_t padded) {
    Vf sum = load_floats(a) * load_floats(b);
    for (size_t i = kLanes; i < padded; i += kLanes) sum = fmadd(load_floats(a + i), load_floats(b + i), sum);
    return lane_sum(sum);
}

// out += sum of p[j] * rows[j], in order of j; V vectors of a row at a time stay in registers.
template <int V>
inline void weigh_columns(const float* p, const float* rows, size_t count, size_t padded, float* out) {
    Vf acc[V];
    for (int v = 0; v < V; ++v) acc[v] = load_floats(out + v * kLanes);
    for (size_t j = 0; j < count; ++j) {
        const Vf weight = splat(p[j]);
        for (int v = 0; v < V; ++v) acc[v] = fmadd(weight, load_floats(rows + j * padded + v * kLanes), acc[v]);
    }
    for (int v = 0; v < V; ++v) store_floats(out + v * kLanes, acc[v]);
}

inline void weigh(const float* p, const float* rows, size_t count, size_t padded, float* out) {
    size_t i = 0;
    for (; i + 4 * kLanes <= padded; i += 4 * kLanes) weigh_columns<4>(p, rows + i, count, padded, out + i);
    for (; i < padded; i += kLanes) weigh_columns<1>(p, rows + i, count, padded, out + i);
}

void attend(const AttendArgs& a) {
    const size_t padded = round_up(a.head_dim, 16), row_bytes = kv_row_bytes(a.format, a.head_dim);
    size_t n_keys = 0;
    for (size_t i = 0; i < a.n_runs; ++i) n_keys += a.runs[i].count;
    const size_t score_stride = round_up(n_keys, 16);

    if (a.format == KvFormat::F16) {
        // Queries and probabilities as precise as keys and values, as in llama.cpp: rounding alike keeps results within the
        // noise that its own batch sizes have.
        for (size_t i = 0; i < a.n_heads * padded; ++i) a.q[i] = rounded_half(a.q[i]);
    }
    size_t at = 0;
    for (size_t i = 0; i < a.n_runs; ++i) {
        for (size_t j = 0; j < a.runs[i].count; j += kAttendTile) {
            const size_t count = a.runs[i].count - j < kAttendTile ? a.runs[i].count - j : kAttendTile;
            widen_rows(a.format, a.keys + (a.runs[i].first + j) * row_bytes, count, a.head_dim, padded, a.tile);
            for (size_t h = 0; h < a.n_heads; ++h)
                for (size_t k = 0; k < count; ++k)
                    a.scores[h * score_stride + at + k] = dot_floats(a.q + h * padded, a.tile + k * padded, padded) * a.scale;
            at += count;
        }
    }

    float* sums = a.tile + kAttendTile * padded;  // [n_heads, padded]
    for (size_t h = 0; h < a.n_heads; ++h) {
        float* scores = a.scores + h * score_stride;
        for (size_t i = n_keys; i < score_stride; ++i) scores[i] = -__builtin_inff();
        if (a.soft_cap != 0.0f) soft_cap(scores, a.soft_cap, n_keys, scores);
        float largest = -__builtin_inff();
        for (size_t i = 0; i < n_keys; ++i) largest = scores[i] > largest ? scores[i] : largest;
        Vf total = {};
        for (size_t i = 0; i < score_stride; i += kLanes) {
            const Vf p = exponential(load_floats(scores + i) - splat(largest));
            total += p;
            store_floats(scores + i, p);
        }
        const float inverse = 1.0f / lane_sum(total);
        for (size_t i = 0; i < n_keys; ++i) {
            const float p = scores[i] * inverse;
            scores[i] = a.format == KvFormat::F16 ? rounded_half(p) : p;
        }
        for (size_t i = 0; i < padded; ++i) sums[h * padded + i] = 0.0f;
    }

    at = 0;
    for (size_t i = 0; i < a.n_runs; ++i) {
        for (size_t j = 0; j < a.runs[i].count; j += kAttendTile) {
            const size_t count = a.runs[i].count - j < kAttendTile ? a.runs[i].count - j : kAttendTile;
            widen_rows(a.format, a.values + (a.runs[i].first + j) * row_bytes, count, a.head_dim, padded, a.tile);
            for (size_t h = 0; h < a.n_heads; ++h)
                weigh(a.scores + h * score_stride + at, a.tile, count, padded, sums + h * padded);
            at += count;
        }
    }
    for (size_t h = 0; h < a.n_heads; ++h) std::memcpy(a.out + h * a.head_dim, sums + h * padded, a.head_dim * sizeof(float));
}

}  // namespace
}  // namespace hetrun::cpu
