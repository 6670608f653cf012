// Storage blocks of GGUF tensors, as ggml writes them (gguf.constants.GGML_QUANT_SIZES).
// All fields are bytes, so that the structs have alignment 1: GGUF guarantees no more for blocks of 18, 34 or 210 bytes.
#pragma once

#include <cstdint>

namespace hetrun {

enum class TensorType : uint32_t {
    F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8,
    Q2_K = 10, Q3_K = 11, Q4_K = 12, Q5_K = 13, Q6_K = 14, IQ4_NL = 20, IQ4_XS = 23,
    BF16 = 30, TQ1_0 = 34, TQ2_0 = 35, MXFP4 = 39,
    W2S24 = 60, W2 = 61,  // of hetrun compress (docs/compression.md), beyond GGUF's numbers
};

using Half = uint8_t[2];  // little-endian IEEE binary16

struct BlockQ4_0 { Half d; uint8_t qs[16]; };                                            // x = d * (q - 8)
struct BlockQ4_1 { Half d; Half m; uint8_t qs[16]; };                                    // x = d * q + m
struct BlockQ5_0 { Half d; uint8_t qh[4]; uint8_t qs[16]; };                             // x = d * (q - 16)
struct BlockQ5_1 { Half d; Half m; uint8_t qh[4]; uint8_t qs[16]; };                     // x = d * q + m
struct BlockQ8_0 { Half d; int8_t qs[32]; };                                             // x = d * q
struct BlockQ2_K { uint8_t scales[16]; uint8_t qs[64]; Half d; Half dmin; };             // 16 sub-blocks of 16
struct BlockQ3_K { uint8_t hmask[32]; uint8_t qs[64]; uint8_t scales[12]; Half d; };     // 16 sub-blocks of 16
struct BlockQ4_K { Half d; Half dmin; uint8_t scales[12]; uint8_t qs[128]; };            // 8 sub-blocks of 32
struct BlockQ5_K { Half d; Half dmin; uint8_t scales[12]; uint8_t qh[32]; uint8_t qs[128]; };
struct BlockQ6_K { uint8_t ql[128]; uint8_t qh[64]; int8_t scales[16]; Half d; };        // 16 sub-blocks of 16

struct BlockIQ4_NL { Half d; uint8_t qs[16]; };                                          // x = d * table[q]
struct BlockIQ4_XS { Half d; uint8_t scales_h[2]; uint8_t scales_l[4]; uint8_t qs[128]; };  // 8 sub-blocks of 32
struct BlockTQ1_0 { uint8_t qs[48]; uint8_t qh[4]; Half d; };                            // x = d * (q - 1), 5 q a byte
struct BlockTQ2_0 { uint8_t qs[64]; Half d; };                                           // x = d * (q - 1)
struct BlockMXFP4 { uint8_t e; uint8_t qs[16]; };                                        // x = 2^(e - 128) * table[q]

// Groups of 64 of hetrun compress. A row's scale, float32, stands behind its last group: x = row * scale * (q - zero).
struct BlockW2S24 { uint8_t patterns[6]; uint8_t qs[8]; uint8_t scale_zero[2]; };        // 16 patterns of 3 bits, 32 q of 2
struct BlockW2 { uint8_t qs[16]; uint8_t scale_zero[2]; };                               // scale: 14 bits, zero: 2
constexpr unsigned kRowScaleBytes = 4;
// Pattern of four weights -> the two that are kept; the reserved ones keep none.
constexpr uint8_t kKeptPairs[8][2] = {{0, 1}, {0, 2}, {0, 3}, {1, 2}, {1, 3}, {2, 3}, {0, 0}, {0, 0}};
static inline unsigned pattern_of(const BlockW2S24& b, unsigned four) {
    const unsigned byte = 3 * four / 8, next = byte < 5 ? b.patterns[byte + 1] : 0u;
    return (b.patterns[byte] | next << 8) >> (3 * four % 8) & 7u;
}

static_assert(sizeof(BlockW2S24) == 16 && sizeof(BlockW2) == 18, "block sizes of docs/compression.md");
static_assert(sizeof(BlockQ4_0) == 18 && sizeof(BlockQ4_1) == 20 && sizeof(BlockQ5_0) == 22, "GGUF block sizes");
static_assert(sizeof(BlockQ5_1) == 24 && sizeof(BlockQ8_0) == 34 && sizeof(BlockQ2_K) == 84, "GGUF block sizes");
static_assert(sizeof(BlockQ3_K) == 110 && sizeof(BlockQ4_K) == 144 && sizeof(BlockQ5_K) == 176, "GGUF block sizes");
static_assert(sizeof(BlockIQ4_NL) == 18 && sizeof(BlockIQ4_XS) == 136 && sizeof(BlockMXFP4) == 17, "GGUF block sizes");
static_assert(sizeof(BlockTQ1_0) == 54 && sizeof(BlockTQ2_0) == 66, "GGUF block sizes");
static_assert(sizeof(BlockQ6_K) == 210 && alignof(BlockQ6_K) == 1, "GGUF block sizes");

}  // namespace hetrun
