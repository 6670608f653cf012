// GGUF blocks into tiles (hls/formats.h), and activations into codes. Runs on the board's processor too.
#include <cmath>
#include <cstring>

#include "../hls/formats.h"
#include "gguf_blocks.h"
#include "hetrun_pynq_z1.h"

namespace hetrun::pynq {
namespace {

// 64 bits of a tile header, nibble by nibble, pair by pair or half by half.
inline void put(uint64_t& word, int bit, uint64_t value) { word |= value << bit; }

// Where the sections of a tile's header begin, in words.
struct Sections {
    int second, high, d, m;

    explicit Sections(const Format& f) {
        second = f.super ? 8 : 0;
        high = second + (f.second ? 8 : 0);
        d = high + (f.high ? 4 : 0);
        m = d + (f.super ? 2 : 4);
    }
};

struct Tile {
    const Format& format;
    const Sections sections;
    uint64_t* words;

    void nibble(int row, int i, int value) { put(words[row], 4 * i, static_cast<uint64_t>(value & 15)); }
    void second(int row, int i, int value) { put(words[sections.second + row], 4 * i, static_cast<uint64_t>(value & 15)); }
    void six(int row, int i, int value) {
        nibble(row, i, value);
        put(words[sections.high + row / 2], row % 2 * 32 + 2 * i, static_cast<uint64_t>(value >> 4 & 3));
    }
    void half(int section, int i, const uint8_t* bytes) {
        put(words[section + i / 4], 16 * (i % 4), static_cast<uint64_t>(bytes[0] | bytes[1] << 8));
    }
};

void unpack_two_bits(const uint8_t* qs, uint8_t* codes) {
    for (int i = 0; i < 256; ++i) codes[i] = qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
}

void unpack_nibbles(const uint8_t* qs, int n, int half, uint8_t* codes) {  // the first half of each 2 * half in the low nibbles
    for (int i = 0; i < n; ++i) {
        const uint8_t byte = qs[i / (2 * half) * half + i % half];
        codes[i] = i % (2 * half) < half ? byte & 15 : byte >> 4;
    }
}

// Codes with their offsets, and the header's fields, of one row's super-block.
void decode(const BlockQ2_K& b, int row, Tile& tile, uint8_t* codes) {
    unpack_two_bits(b.qs, codes);
    for (int i = 0; i < 16; ++i) {
        tile.nibble(row, i, b.scales[i]);
        tile.second(row, i, b.scales[i] >> 4);
    }
    tile.half(tile.sections.d, row, b.d);
    tile.half(tile.sections.m, row, b.dmin);
}

void decode(const BlockQ3_K& b, int row, Tile& tile, uint8_t* codes) {
    unpack_two_bits(b.qs, codes);
    for (int i = 0; i < 256; ++i) codes[i] = static_cast<uint8_t>(codes[i] | (b.hmask[i % 32] >> (i / 32) & 1) << 2);
    for (int i = 0; i < 16; ++i) {
        const int low = i < 8 ? b.scales[i] & 15 : b.scales[i - 8] >> 4;
        const int high = b.scales[8 + i % 4] >> (2 * (i / 4)) & 3;
        tile.six(row, i, (low | high << 4) ^ 32);
    }
    tile.half(tile.sections.d, row, b.d);
}

template <class Block>
void decode_scales_k4(const Block& b, int row, Tile& tile) {
    for (int i = 0; i < 4; ++i) {
        const uint8_t *low = b.scales, *both = b.scales + 8;
        tile.six(row, i, low[i] & 63);
        tile.six(row, 4 + i, (both[i] & 15) | low[i] >> 6 << 4);
        tile.six(row, 8 + i, low[4 + i] & 63);
        tile.six(row, 12 + i, both[i] >> 4 | low[4 + i] >> 6 << 4);
    }
    tile.half(tile.sections.d, row, b.d);
    tile.half(tile.sections.m, row, b.dmin);
}

void decode(const BlockQ4_K& b, int row, Tile& tile, uint8_t* codes) {
    unpack_nibbles(b.qs, 256, 32, codes);
    decode_scales_k4(b, row, tile);
}

void decode(const BlockQ5_K& b, int row, Tile& tile, uint8_t* codes) {
    unpack_nibbles(b.qs, 256, 32, codes);
    for (int i = 0; i < 256; ++i) codes[i] = static_cast<uint8_t>(codes[i] | (b.qh[i % 32] >> (i / 32) & 1) << 4);
    decode_scales_k4(b, row, tile);
}

void decode(const BlockQ6_K& b, int row, Tile& tile, uint8_t* codes) {
    for (int i = 0; i < 256; ++i) {
        const int part = i / 128, quarter = i % 128 / 32, l = i % 32;
        const uint8_t low = b.ql[64 * part + quarter % 2 * 32 + l];
        const int high = b.qh[32 * part + l] >> 2 * quarter & 3;
        codes[i] = static_cast<uint8_t>((quarter < 2 ? low & 15 : low >> 4) | high << 4);
    }
    for (int i = 0; i < 16; ++i) {
        tile.nibble(row, i, b.scales[i]);
        tile.second(row, i, b.scales[i] >> 4);
    }
    tile.half(tile.sections.d, row, b.d);
}

// The same of a block of 32. i: its number among the tile's.
void fifth_bits(const uint8_t* qh, uint8_t* codes) {
    for (int k = 0; k < 32; ++k) codes[k] = static_cast<uint8_t>(codes[k] | (qh[k / 8] >> k % 8 & 1) << 4);
}
void decode(const BlockQ4_0& b, int i, Tile& tile, uint8_t* codes) {
    unpack_nibbles(b.qs, 32, 16, codes);
    tile.half(tile.sections.d, i, b.d);
}
void decode(const BlockQ4_1& b, int i, Tile& tile, uint8_t* codes) {
    unpack_nibbles(b.qs, 32, 16, codes);
    tile.half(tile.sections.d, i, b.d);
    tile.half(tile.sections.m, i, b.m);
}
void decode(const BlockQ5_0& b, int i, Tile& tile, uint8_t* codes) {
    unpack_nibbles(b.qs, 32, 16, codes);
    fifth_bits(b.qh, codes);
    tile.half(tile.sections.d, i, b.d);
}
void decode(const BlockQ5_1& b, int i, Tile& tile, uint8_t* codes) {
    unpack_nibbles(b.qs, 32, 16, codes);
    fifth_bits(b.qh, codes);
    tile.half(tile.sections.d, i, b.d);
    tile.half(tile.sections.m, i, b.m);
}
void decode(const BlockQ8_0& b, int i, Tile& tile, uint8_t* codes) {
    for (int k = 0; k < 32; ++k) codes[k] = static_cast<uint8_t>(b.qs[k]) ^ 0x80;  // an offset like the others'
    tile.half(tile.sections.d, i, b.d);
}

// Byte b of the result holds bit b of the eight bytes.
uint64_t transposed(uint64_t x) {
    uint64_t t = (x ^ x >> 7) & 0x00aa00aa00aa00aau;
    x ^= t ^ t << 7;
    t = (x ^ x >> 14) & 0x0000cccc0000ccccu;
    x ^= t ^ t << 14;
    t = (x ^ x >> 28) & 0x00000000f0f0f0f0u;
    return x ^ t ^ t << 28;
}

void write_planes(const uint8_t* codes, const Format& f, uint64_t* planes) {
    const uint64_t flip = f.is_signed ? 0x0101010101010101u << (f.bits - 1) : 0;
    uint64_t out[8] = {};
    for (int i = 0; i < kPacket / 8; ++i) {
        uint64_t eight;
        std::memcpy(&eight, codes + 8 * i, 8);
        eight = transposed(eight ^ flip);
        for (int b = 0; b < f.bits; ++b) out[b] |= (eight >> 8 * b & 0xff) << 8 * i;
    }
    std::memcpy(planes, out, sizeof(uint64_t) * static_cast<size_t>(f.bits));
}

template <class Block>
void pack(const Format& f, uint64_t n_rows, uint64_t n_columns, const uint8_t* blocks, uint64_t* stream) {
    const uint64_t block_columns = f.super ? 256 : 32, row_blocks = n_columns / block_columns;
    const uint64_t columns = static_cast<uint64_t>(chunk_columns(f)), n_chunks = (n_columns + columns - 1) / columns;
    const uint64_t words = static_cast<uint64_t>(tile_words(f)), tile_blocks = columns / block_columns;
    const int packets = packets_of_row(f), header = header_words(f);
    for (uint64_t first = 0; first < n_rows; first += kTileRows) {
        for (uint64_t chunk = 0; chunk < n_chunks; ++chunk, stream += words) {
            std::memset(stream, 0, words * sizeof(uint64_t));
            Tile tile{f, Sections(f), stream};
            for (int row = 0; row < kTileRows && first + static_cast<uint64_t>(row) < n_rows; ++row) {
                uint8_t codes[256];
                // A zero, not a code of zero: padded columns have a scale of zero, but their products are summed.
                std::memset(codes, f.is_signed ? 1 << (f.bits - 1) : 0, sizeof codes);
                for (uint64_t b = 0; b < tile_blocks && chunk * tile_blocks + b < row_blocks; ++b) {
                    Block block;
                    const uint64_t number = (first + static_cast<uint64_t>(row)) * row_blocks + chunk * tile_blocks + b;
                    std::memcpy(&block, blocks + number * sizeof block, sizeof block);
                    decode(block, f.super ? row : 2 * row + static_cast<int>(b), tile, codes + b * block_columns);
                }
                for (int p = 0; p < packets; ++p)
                    write_planes(codes + p * kPacket, f, stream + header + (row * packets + p) * f.bits);
            }
        }
    }
}

}  // namespace
}  // namespace hetrun::pynq

using namespace hetrun;
using namespace hetrun::pynq;

uint32_t hetrun_pynq_abi(void) { return HETRUN_PYNQ_ABI; }

uint64_t hetrun_pynq_stream_bytes(uint32_t format, uint64_t n_rows, uint64_t n_columns) {
    if (format >= HETRUN_PYNQ_FORMATS) return 0;
    const Format& f = kFormats[format];
    if (n_columns == 0 || n_columns % (f.super ? 256 : 32) != 0) return 0;
    const uint64_t columns = static_cast<uint64_t>(chunk_columns(f));
    return (n_rows + kTileRows - 1) / kTileRows * ((n_columns + columns - 1) / columns) * static_cast<uint64_t>(tile_words(f)) * 8;
}

void hetrun_pynq_pack(uint32_t format, uint64_t n_rows, uint64_t n_columns, const uint8_t* blocks, uint8_t* stream) {
    uint64_t* out = reinterpret_cast<uint64_t*>(stream);
    switch (format) {
        case HETRUN_PYNQ_FORMAT_Q2_K: return pack<BlockQ2_K>(kFormats[format], n_rows, n_columns, blocks, out);
        case HETRUN_PYNQ_FORMAT_Q3_K: return pack<BlockQ3_K>(kFormats[format], n_rows, n_columns, blocks, out);
        case HETRUN_PYNQ_FORMAT_Q4_K: return pack<BlockQ4_K>(kFormats[format], n_rows, n_columns, blocks, out);
        case HETRUN_PYNQ_FORMAT_Q5_K: return pack<BlockQ5_K>(kFormats[format], n_rows, n_columns, blocks, out);
        case HETRUN_PYNQ_FORMAT_Q6_K: return pack<BlockQ6_K>(kFormats[format], n_rows, n_columns, blocks, out);
        case HETRUN_PYNQ_FORMAT_Q4_0: return pack<BlockQ4_0>(kFormats[format], n_rows, n_columns, blocks, out);
        case HETRUN_PYNQ_FORMAT_Q4_1: return pack<BlockQ4_1>(kFormats[format], n_rows, n_columns, blocks, out);
        case HETRUN_PYNQ_FORMAT_Q5_0: return pack<BlockQ5_0>(kFormats[format], n_rows, n_columns, blocks, out);
        case HETRUN_PYNQ_FORMAT_Q5_1: return pack<BlockQ5_1>(kFormats[format], n_rows, n_columns, blocks, out);
        case HETRUN_PYNQ_FORMAT_Q8_0: return pack<BlockQ8_0>(kFormats[format], n_rows, n_columns, blocks, out);
        default: return;
    }
}

void hetrun_pynq_quantize(const float* x, uint64_t n, uint64_t padded, uint32_t block, int8_t* codes, float* scales) {
    for (uint64_t first = 0; first < padded; first += block) {
        const uint64_t end = first + block < n ? first + block : n;
        float largest = 0.0f;
        bool finite = true;
        for (uint64_t i = first; i < end; ++i) {
            finite = finite && std::isfinite(x[i]);
            largest = std::fabs(x[i]) > largest ? std::fabs(x[i]) : largest;
        }
        const bool usable = finite && largest >= 1e-35f;  // of tiny numbers the inverse would overflow
        const float inverse = usable ? 127.0f / largest : 0.0f;
        for (uint64_t i = first; i < first + block; ++i)
            codes[i] = usable && i < end ? static_cast<int8_t>(std::nearbyint(x[i] * inverse)) : int8_t{0};
        scales[first / block] = finite ? (usable ? largest / 127.0f : 0.0f) : std::nanf("");
    }
}
