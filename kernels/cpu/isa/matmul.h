// Rows of codes times prepared tokens: a few rows are decoded once, then meet all tokens.
#pragma once

namespace hetrun::cpu {
namespace {

// Codes, and the scales of super-blocks. Blocks of 32 leave their halves at `halves` ([2, scale_stride]): scales, then minima.
template <class Codec>
inline void decode_row(const uint8_t* row, size_t n, const Decoded& to, size_t r, uint8_t* halves) {
    using Block = typename Codec::Block;
    constexpr int kBias = stored_bias(Codec::kOffset);
    const Block* blocks = reinterpret_cast<const Block*>(row);
    const size_t n_blocks = n / Codec::kBlock, padded = to.scale_stride;
    int8_t* codes = to.codes + r * to.code_stride;
    if constexpr (kHalfScales<Codec>) {
        for (size_t b = 0; b < n_blocks; ++b) {
            Codec::template decode<kBias>(blocks[b], codes + b * 32);
            std::memcpy(halves + 2 * b, Codec::scale(blocks[b]), 2);
            if constexpr (Codec::kMin) std::memcpy(halves + 2 * (padded + b), Codec::minimum(blocks[b]), 2);
        }
        for (size_t b = n_blocks; b < padded; ++b) {
            std::memset(halves + 2 * b, 0, 2);
            std::memset(halves + 2 * (padded + b), 0, 2);
        }
    } else {
        constexpr size_t kPerBlock = Codec::kBlock / Codec::kSub;
        float* scales = to.scales + r * padded;
        float* minima = to.minima + r * padded;
        for (size_t b = 0; b < n_blocks; ++b)
            Codec::template decode<kBias>(blocks[b], codes + b * Codec::kBlock, scales + b * kPerBlock, minima + b * kPerBlock);
        if constexpr (kRowScale<Codec>) {
            const float factor = row_scale<Codec>(row, n);
            for (size_t i = 0; i < n_blocks * kPerBlock; ++i) scales[i] *= factor;
        }
        for (size_t i = n_blocks * kPerBlock; i < padded; ++i) {
            scales[i] = 0.0f;
            if (Codec::kMin) minima[i] = 0.0f;
        }
    }
}

template <class Codec, int R>
inline void dot_rows(const Decoded& w, size_t row, const MatmulArgs& m) {
    constexpr int kOffset = Codec::kOffset;
    constexpr int kSub = static_cast<int>(Codec::kSub);
    const PreparedLayout& layout = *m.layout;
    const size_t sums = Codec::kBlock == 32 ? layout.half_sum32 : kSub == 32 ? layout.sum32 : layout.sum16;
    const Decoded own = {w.codes + row * w.code_stride, w.scales + row * w.scale_stride, w.minima + row * w.scale_stride,
                         w.code_stride, w.scale_stride};
    float* out = m.out + row;
    size_t t = 0;
    for (; t + kTileTokens <= m.n_tokens; t += kTileTokens)
        dot_tile<kOffset, kSub, Codec::kMin, R, kTileTokens>(own, m.prepared + t * layout.stride, layout, sums,
                                                             out + t * m.out_stride, m.out_stride);
    for (; t < m.n_tokens; ++t)
        dot_tile<kOffset, kSub, Codec::kMin, R, 1>(own, m.prepared + t * layout.stride, layout, sums, out + t * m.out_stride,
                                                   m.out_stride);
}

template <class Codec>
void matmul_codes(const MatmulArgs& m) {
    const size_t n = m.layout->n;
    Decoded w;
    w.code_stride = round_up(n, 64);
    w.scale_stride = round_up(n / Codec::kSub, 16);
    w.codes = reinterpret_cast<int8_t*>(m.scratch);
    w.scales = reinterpret_cast<float*>(m.scratch + kDecodedRows * w.code_stride);
    w.minima = w.scales + kDecodedRows * w.scale_stride;
    uint8_t* halves = reinterpret_cast<uint8_t*>(w.minima + kDecodedRows * w.scale_stride);
    const size_t step = m.n_tokens > kTileTokens ? kDecodedRows : kTileRows;
    for (size_t first = 0; first < m.n_rows; first += step) {
        const size_t rows = m.n_rows - first < step ? m.n_rows - first : step;
        for (size_t r = 0; r < rows; ++r) {
            const uint8_t* row = m.weights + (first + r) * m.row_bytes;
            prefetch(row + kPrefetchBytes, m.row_bytes);
            decode_row<Codec>(row, n, w, r, halves + 4 * r * w.scale_stride);
        }
        if constexpr (kHalfScales<Codec>) {
            // Only now, as a vector cannot be loaded from bytes whose narrow stores are still under way.
            for (size_t r = 0; r < rows; ++r) {
                const uint8_t* own = halves + 4 * r * w.scale_stride;
                widen<RowF16>(own, w.scale_stride, w.scales + r * w.scale_stride);
                if constexpr (Codec::kMin)
                    widen<RowF16>(own + 2 * w.scale_stride, w.scale_stride, w.minima + r * w.scale_stride);
            }
        }
        MatmulArgs part = m;
        part.out = m.out + first;
        size_t r = 0;
        for (; r + kTileRows <= rows; r += kTileRows) dot_rows<Codec, kTileRows>(w, r, part);
        for (; r < rows; ++r) dot_rows<Codec, 1>(w, r, part);
    }
}

template <class Codec>
void dequantize_codes(const uint8_t* row, size_t n, float* out) {
    using Block = typename Codec::Block;
    const Block* blocks = reinterpret_cast<const Block*>(row);
    int8_t codes[Codec::kBlock];
    float scales[16], minima[16] = {};
    const float factor = row_scale<Codec>(row, n);
    for (size_t b = 0; b < n / Codec::kBlock; ++b) {
        if constexpr (kHalfScales<Codec>) {
            Codec::template decode<0>(blocks[b], codes);
            scales[0] = half(Codec::scale(blocks[b]));
            if constexpr (Codec::kMin) minima[0] = half(Codec::minimum(blocks[b]));
        } else {
            Codec::template decode<0>(blocks[b], codes, scales, minima);
        }
        for (size_t i = 0; i < Codec::kBlock; ++i) {
            const size_t s = i / Codec::kSub;
            const float scale = kRowScale<Codec> ? scales[s] * factor : scales[s];
            const float x = scale * static_cast<float>(codes[i]);
            out[b * Codec::kBlock + i] = Codec::kMin ? x + minima[s] : x;
        }
    }
}

}  // namespace
}  // namespace hetrun::cpu
