// What makes the engine's source fast on a host, with the same bits: bits of planes become bytes eight at once, products are
// vectors, each format has a copy of the processes in which it is a constant, and rows, which are independent, run in slabs that
// stay in the cache and that threads share.
#pragma once

#include <cstdint>
#include <cstring>

#include "../hls/engine.h"
#include "../hls/formats.h"

// Runs job(argument, i) for all i < n, in any order, on the threads of the board that runs here.
extern "C" void hetrun_pynq_csim_share(void (*job)(void* argument, uint32_t i), void* argument, uint32_t n);

namespace hetrun::pynq {

// 64 codes of `bits` bits, two's complement or unsigned: bit k of plane[b] is bit b of code k.
inline void codes_of_planes(const uint64_t* plane, int bits, bool is_signed, int8_t* codes) {
    // Eight bits become eight bytes at once.
    uint64_t bytes[kPacket / 8] = {};
    for (int b = 0; b < bits; ++b) {
        const uint64_t value = is_signed && b == bits - 1 ? 0xffu & ~((1u << b) - 1) : 1u << b;
        for (int i = 0; i < kPacket / 8; ++i) {
            const uint64_t copies = (plane[b] >> 8 * i & 0xff) * 0x0101010101010101u & 0x8040201008040201u;
            bytes[i] |= ((copies + 0x7f7f7f7f7f7f7f7fu) >> 7 & 0x0101010101010101u) * value;
        }
    }
    std::memcpy(codes, bytes, sizeof bytes);
}

// Sixteen products. Left to itself the compiler takes them one by one.
inline int32_t dot_of_sixteen(const int8_t* weights, const int8_t* x) {
    using Bytes [[gnu::vector_size(8)]] = int8_t;
    using Words [[gnu::vector_size(16)]] = int16_t;
    using HalfWords [[gnu::vector_size(8)]] = int16_t;
    using Ints [[gnu::vector_size(16)]] = int32_t;
    Bytes w[2], a[2];
    std::memcpy(w, weights, sizeof w);
    std::memcpy(a, x, sizeof a);
    // Two products fit 16 bits: 2 * 128 * 127.
    const Words twos = __builtin_convertvector(w[0], Words) * __builtin_convertvector(a[0], Words) +
                       __builtin_convertvector(w[1], Words) * __builtin_convertvector(a[1], Words);
    HalfWords half[2];
    std::memcpy(half, &twos, sizeof half);
    const Ints sums = __builtin_convertvector(half[0], Ints) + __builtin_convertvector(half[1], Ints);
    return sums[0] + sums[1] + sums[2] + sums[3];
}

template <uint32_t Format, class Run>
[[gnu::flatten]] void run_with_format(Descriptor d, uint32_t& busy, uint32_t& stalls, const Run& run) {
    d.format = Format;
    run(d, busy, stalls);
}

template <class Run>
void run_slab(const Descriptor& d, uint32_t& busy, uint32_t& stalls, const Run& run) {
    switch (d.format) {
        case HETRUN_PYNQ_FORMAT_Q2_K: return run_with_format<HETRUN_PYNQ_FORMAT_Q2_K>(d, busy, stalls, run);
        case HETRUN_PYNQ_FORMAT_Q3_K: return run_with_format<HETRUN_PYNQ_FORMAT_Q3_K>(d, busy, stalls, run);
        case HETRUN_PYNQ_FORMAT_Q4_K: return run_with_format<HETRUN_PYNQ_FORMAT_Q4_K>(d, busy, stalls, run);
        case HETRUN_PYNQ_FORMAT_Q5_K: return run_with_format<HETRUN_PYNQ_FORMAT_Q5_K>(d, busy, stalls, run);
        case HETRUN_PYNQ_FORMAT_Q6_K: return run_with_format<HETRUN_PYNQ_FORMAT_Q6_K>(d, busy, stalls, run);
        case HETRUN_PYNQ_FORMAT_Q4_0: return run_with_format<HETRUN_PYNQ_FORMAT_Q4_0>(d, busy, stalls, run);
        case HETRUN_PYNQ_FORMAT_Q4_1: return run_with_format<HETRUN_PYNQ_FORMAT_Q4_1>(d, busy, stalls, run);
        case HETRUN_PYNQ_FORMAT_Q5_0: return run_with_format<HETRUN_PYNQ_FORMAT_Q5_0>(d, busy, stalls, run);
        case HETRUN_PYNQ_FORMAT_Q5_1: return run_with_format<HETRUN_PYNQ_FORMAT_Q5_1>(d, busy, stalls, run);
        case HETRUN_PYNQ_FORMAT_Q8_0: return run_with_format<HETRUN_PYNQ_FORMAT_Q8_0>(d, busy, stalls, run);
    }
}

// Calls run(descriptor, busy, stalls) for slabs of the descriptor's rows, which together are the descriptor.
template <class Run>
void run_in_slabs(const Descriptor& d, uint32_t& busy, uint32_t& stalls, const Run& run) {
    constexpr uint32_t kWordsOfSlab = 2048, kTile = kTileRows, kMaxSlabs = HETRUN_PYNQ_MAX_ROWS / kTile;
    const uint32_t row_of_tiles = d.n_chunks * static_cast<uint32_t>(tile_words(kFormats[d.format]));  // words
    const uint32_t block_rows = d.mode == HETRUN_PYNQ_MODE_CODES_256 ? 256 : d.mode == HETRUN_PYNQ_MODE_CODES_32 ? 32 : kTile;
    const uint32_t block_words = block_rows / kTile * row_of_tiles;
    struct Slabs {
        const Descriptor& d;
        const Run& run;
        uint32_t row_of_tiles, block_rows, rows, busy[kMaxSlabs], stalls[kMaxSlabs];
    } slabs{d, run, row_of_tiles, block_rows, block_rows * (block_words < kWordsOfSlab ? kWordsOfSlab / block_words : 1), {}, {}};
    const auto job = [](void* argument, uint32_t i) {
        Slabs& s = *static_cast<Slabs*>(argument);
        const uint32_t row = i * s.rows, left = s.d.n_rows - row, out_left = s.d.out_rows > row ? s.d.out_rows - row : 0;
        Descriptor slab = s.d;
        slab.n_rows = left < s.rows ? left : s.rows;
        slab.weights += row / kTile * s.row_of_tiles * 8;
        slab.out_rows = out_left < slab.n_rows ? out_left : slab.n_rows;
        slab.gate_row += row;
        const bool coded = s.d.mode == HETRUN_PYNQ_MODE_CODES_32 || s.d.mode == HETRUN_PYNQ_MODE_CODES_256;
        slab.out += row * (coded ? 1 : 4);
        slab.out_scales += row / s.block_rows * 4;
        run_slab(slab, s.busy[i], s.stalls[i], s.run);
    };
    const uint32_t n_slabs = (d.n_rows + slabs.rows - 1) / slabs.rows;
    hetrun_pynq_csim_share(job, &slabs, n_slabs);
    for (uint32_t i = 0; i < n_slabs; ++i) {
        busy += slabs.busy[i];
        stalls += slabs.stalls[i];
    }
}

}  // namespace hetrun::pynq
