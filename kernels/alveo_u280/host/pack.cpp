// Tensors of a file into beats of a channel (hls/engine.h).
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "../hls/formats.h"
#include "gguf_blocks.h"
#include "hetrun_alveo_u280.h"

namespace hetrun::u280 {
namespace {

double half(const uint8_t* bytes) {
    const int h = bytes[0] | bytes[1] << 8, exponent = h >> 10 & 31, fraction = h & 1023;
    const double magnitude = exponent == 31 ? (fraction ? std::nan("") : INFINITY)
                             : exponent     ? std::ldexp(1024 + fraction, exponent - 25)
                                            : std::ldexp(fraction, -24);
    return h & 0x8000 ? -magnitude : magnitude;
}

// Codes as the engine's format has them, and what they are scaled by: value = scale * code + minimum.
struct FileRow {
    uint8_t codes[HETRUN_U280_MAX_COLUMNS];
    uint32_t n_codes = 0;
    std::vector<double> scales, minima;

    void code(int value) { codes[n_codes++] = static_cast<uint8_t>(value); }
    void clear() {
        n_codes = 0;
        scales.clear();
        minima.clear();
    }
};

int fifth(const uint8_t* qh, int i) { return (qh[i / 8] >> i % 8 & 1) << 4; }
int nibble_of_halves(const uint8_t* qs, int i) { return i < 16 ? qs[i] & 15 : qs[i - 16] >> 4; }

void decode(const BlockQ4_0& b, FileRow& row) {
    for (int i = 0; i < 32; ++i) row.code(nibble_of_halves(b.qs, i));
    row.scales.push_back(half(b.d));
}
void decode(const BlockQ4_1& b, FileRow& row) {
    for (int i = 0; i < 32; ++i) row.code(nibble_of_halves(b.qs, i));
    row.scales.push_back(half(b.d));
    row.minima.push_back(half(b.m));
}
void decode(const BlockQ5_0& b, FileRow& row) {
    for (int i = 0; i < 32; ++i) row.code((nibble_of_halves(b.qs, i) | fifth(b.qh, i)) - 16);
    row.scales.push_back(half(b.d));
}
void decode(const BlockQ8_0& b, FileRow& row) {
    for (int i = 0; i < 32; ++i) row.code(b.qs[i]);
    row.scales.push_back(half(b.d));
}
void decode(const BlockQ4_K& b, FileRow& row) {
    for (int i = 0; i < 256; ++i) {
        const uint8_t byte = b.qs[i / 64 * 32 + i % 32];
        row.code(i % 64 < 32 ? byte & 15 : byte >> 4);
    }
    const uint8_t *low = b.scales, *both = b.scales + 8;
    for (int i = 0; i < 8; ++i) {
        const int scale = i < 4 ? low[i] & 63 : (both[i - 4] & 15) | low[i - 4] >> 6 << 4;
        const int minimum = i < 4 ? low[4 + i] & 63 : both[i - 4] >> 4 | low[i] >> 6 << 4;
        row.scales.push_back(half(b.d) * scale);
        row.minima.push_back(-half(b.dmin) * minimum);
    }
}
void decode(const BlockQ6_K& b, FileRow& row) {
    for (int i = 0; i < 256; ++i) {
        const int part = i / 128, quarter = i % 128 / 32, l = i % 32;
        const uint8_t low = b.ql[64 * part + quarter % 2 * 32 + l];
        const int high = b.qh[32 * part + l] >> 2 * quarter & 3;
        row.code(((quarter < 2 ? low & 15 : low >> 4) | high << 4) - 32);
    }
    for (int i = 0; i < 16; ++i) row.scales.push_back(half(b.d) * b.scales[i]);
}

// row: for its memory, from row to row.
template <class Block>
const FileRow& decoded(const uint8_t* blocks, uint64_t row_number, uint64_t n_blocks, FileRow& row) {
    row.clear();
    for (uint64_t i = 0; i < n_blocks; ++i) {
        Block block;
        std::memcpy(&block, blocks + (row_number * n_blocks + i) * sizeof block, sizeof block);
        decode(block, row);
    }
    return row;
}

constexpr double kSteps = 32767;

float step_of(const FileRow& row) {
    double largest = 0;
    for (const std::vector<double>* all : {&row.scales, &row.minima}) {
        for (const double x : *all) {
            if (!std::isfinite(x)) return std::nanf("");
            largest = std::fabs(x) > largest ? std::fabs(x) : largest;
        }
    }
    return static_cast<float>(largest / kSteps);
}

int16_t steps(double x, float step) {
    if (!(step > 0)) return 0;
    const double n = std::nearbyint(x / step);  // the step was rounded, perhaps down
    return static_cast<int16_t>(n > kSteps ? kSteps : n < -kSteps ? -kSteps : n);
}

// A channel's beats, and where the next row goes.
class Channel {
public:
    Channel(const Format& format, uint32_t n_columns, uint8_t* beats) : f_(format), n_columns_(n_columns), beats_(beats) {}

    uint8_t* at(uint32_t beat, uint32_t byte) const { return beats_ + uint64_t{beat} * HETRUN_U280_BEAT_BYTES + byte; }
    // FileRow `row` of a block.
    void scale(uint32_t block, uint32_t row, float scale) const {
        std::memcpy(at(scales_beat(f_, n_columns_, block), (block % group_blocks(f_) * f_.rows + row) * 4), &scale, 4);
    }
    uint8_t* values(uint32_t block, uint32_t row, uint32_t beat) const {
        const uint32_t group = f_.scales == 0 ? 0 : beat / scaled_beats(f_) * (f_.minima ? 2 : 1);
        return at(first_beat(f_, n_columns_, block) + beat + group, row * (HETRUN_U280_BEAT_BYTES / f_.rows));
    }
    // Scale number i of the row, or its minimum.
    void put(uint32_t block, uint32_t row, uint32_t i, bool minimum, int16_t value) const {
        const uint32_t of_row = f_.scales / f_.rows, beat = i / of_row, n = value_beats(f_, n_columns_), many = scaled_beats(f_);
        const uint32_t group = beat / many, end = (group + 1) * many < n ? (group + 1) * many : n;
        const uint32_t from = first_beat(f_, n_columns_, block) + end + group * (f_.minima ? 2 : 1) + (minimum ? 1 : 0);
        std::memcpy(at(from, 2 * (beat % many * f_.scales + row * of_row + i % of_row)), &value, 2);
    }

    void put(uint32_t block, uint32_t row, const FileRow& from) const {
        const float step = step_of(from);
        scale(block, row, step);
        const uint8_t* codes = from.codes;
        for (uint32_t beat = 0; beat < n_columns_ / f_.columns; ++beat, codes += f_.columns) {
            uint8_t* bytes = values(block, row, beat);
            if (f_.rows == 4) {
                for (uint32_t k = 0; k < 16; ++k) bytes[k] = static_cast<uint8_t>(codes[2 * k] | codes[2 * k + 1] << 4);
            } else {
                std::memcpy(bytes, codes, f_.columns);
            }
        }
        for (uint32_t i = 0; i < from.scales.size(); ++i) put(block, row, i, false, steps(from.scales[i], step));
        for (uint32_t i = 0; i < from.minima.size(); ++i) put(block, row, i, true, steps(from.minima[i], step));
    }

    // A row of groups of 64, whose values and scales stay what they are.
    template <class Block>
    void copy(uint32_t block, uint32_t row, const uint8_t* bytes) const {
        const uint32_t n = n_columns_ / 64;
        for (uint32_t i = 0; i < n; ++i, bytes += sizeof(Block)) {
            std::memcpy(values(block, row, i), bytes, 16);
            if (f_.scales == 0) continue;
            int16_t scale_zero;
            std::memcpy(&scale_zero, bytes + 16, 2);
            put(block, row, i, false, scale_zero);
        }
        float of_row;
        std::memcpy(&of_row, bytes, kRowScaleBytes);
        scale(block, row, of_row);
    }

private:
    const Format& f_;
    const uint32_t n_columns_;
    uint8_t* const beats_;
};

struct Type {
    uint32_t format, block_columns;
};

Type type_of(uint32_t type) {
    switch (static_cast<TensorType>(type)) {
        case TensorType::W2S24: return {HETRUN_U280_FORMAT_W2S24, 64};
        case TensorType::W2: return {HETRUN_U280_FORMAT_W2, 64};
        case TensorType::Q4_0: return {HETRUN_U280_FORMAT_S4, 32};
        case TensorType::Q4_1: return {HETRUN_U280_FORMAT_U4, 32};
        case TensorType::Q4_K: return {HETRUN_U280_FORMAT_U4, 256};
        case TensorType::Q5_0:
        case TensorType::Q8_0: return {HETRUN_U280_FORMAT_S8, 32};
        case TensorType::Q6_K: return {HETRUN_U280_FORMAT_S8H, 256};
        default: return {HETRUN_U280_NO_FORMAT, 1};
    }
}

void put(const Channel& to, uint32_t block, uint32_t row, TensorType type, const uint8_t* blocks, uint64_t number, uint64_t n, FileRow& kept) {
    switch (type) {
        case TensorType::W2S24: return to.copy<BlockW2S24>(block, row, blocks + number * (n * sizeof(BlockW2S24) + kRowScaleBytes));
        case TensorType::W2: return to.copy<BlockW2>(block, row, blocks + number * (n * sizeof(BlockW2) + kRowScaleBytes));
        case TensorType::Q4_0: return to.put(block, row, decoded<BlockQ4_0>(blocks, number, n, kept));
        case TensorType::Q4_1: return to.put(block, row, decoded<BlockQ4_1>(blocks, number, n, kept));
        case TensorType::Q4_K: return to.put(block, row, decoded<BlockQ4_K>(blocks, number, n, kept));
        case TensorType::Q5_0: return to.put(block, row, decoded<BlockQ5_0>(blocks, number, n, kept));
        case TensorType::Q8_0: return to.put(block, row, decoded<BlockQ8_0>(blocks, number, n, kept));
        case TensorType::Q6_K: return to.put(block, row, decoded<BlockQ6_K>(blocks, number, n, kept));
        default: return;
    }
}

}  // namespace
}  // namespace hetrun::u280

using namespace hetrun;
using namespace hetrun::u280;

constexpr uint64_t kChannelBeats = HETRUN_U280_CHANNEL_BYTES / HETRUN_U280_BEAT_BYTES;

uint32_t hetrun_u280_abi(void) { return HETRUN_U280_ABI; }

uint32_t hetrun_u280_format(uint32_t type) { return type_of(type).format; }

uint64_t hetrun_u280_channel_beats(uint32_t type, uint64_t n_rows, uint64_t n_columns) {
    const Type known = type_of(type);
    if (known.format == HETRUN_U280_NO_FORMAT || n_rows == 0 || n_columns == 0 || n_columns % known.block_columns != 0) return 0;
    // A row takes at least a beat of four rows: more than these exceed a channel, and the arithmetic of 32 bits.
    if (n_columns > HETRUN_U280_MAX_COLUMNS || n_rows > 4 * kChannels * kChannelBeats) return 0;
    const Format& f = kFormats[known.format];
    const uint64_t rows = n_rows;
    const uint64_t blocks = channel_blocks(f, static_cast<uint32_t>(rows));
    const uint64_t beats = (blocks + group_blocks(f) - 1) / group_blocks(f) + blocks * block_beats(f, static_cast<uint32_t>(n_columns));
    return beats <= kChannelBeats ? beats : 0;
}

void hetrun_u280_pack(uint32_t type, uint64_t n_rows, uint64_t n_columns, const uint8_t* blocks, uint32_t channel, uint8_t* beats) {
    const uint64_t n_beats = hetrun_u280_channel_beats(type, n_rows, n_columns);
    if (n_beats == 0 || channel >= kChannels) return;
    std::memset(beats, 0, n_beats * HETRUN_U280_BEAT_BYTES);
    const Type known = type_of(type);
    const Format& f = kFormats[known.format];
    const Channel to(f, static_cast<uint32_t>(n_columns), beats);
    const auto kept = std::make_unique<FileRow>();
    for (uint32_t block = 0; block < channel_blocks(f, static_cast<uint32_t>(n_rows)); ++block) {
        for (uint32_t row = 0; row < f.rows; ++row) {
            const uint64_t number = (uint64_t{block} * kChannels + channel) * f.rows + row;
            if (number < n_rows) put(to, block, row, static_cast<TensorType>(type), blocks, number, n_columns / known.block_columns, *kept);
        }
    }
}

uint64_t hetrun_u280_kv_beats(uint32_t n_slots, uint32_t n_cells, uint32_t n_heads_kv, uint32_t head_dim) {
    const bool taken = n_slots > 0 && n_cells > 0 && n_cells <= HETRUN_U280_MAX_CELLS && n_heads_kv > 0 &&
                       n_heads_kv <= HETRUN_U280_MAX_HEADS && head_dim > 0 && head_dim <= HETRUN_U280_MAX_HEAD_DIM && head_dim % 2 == 0;
    if (!taken) return 0;
    const KvLayout kv(n_cells, n_heads_kv, head_dim);
    const uint64_t beats = uint64_t{n_slots} * kv.groups * kv.region_beats;
    return beats <= kChannelBeats ? beats : 0;
}
