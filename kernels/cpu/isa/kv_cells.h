// The KV cache's formats: keys and values into its cells, and out of them as floats.
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

}  // namespace
}  // namespace hetrun::cpu
