// Rows of floats times prepared tokens. A lane adds every kLanes-th product, column by column, then the lanes are added: the
// same for one token, which meets rows as they lie in memory, and for prompts, whose rows are widened first.
#pragma once

namespace hetrun::cpu {
namespace {

// Memory is asked for this far ahead of its use: rows are too short for the hardware to foresee the next.
constexpr size_t kPrefetchBytes = 4096;

inline void prefetch(const uint8_t* from, size_t nbytes) {
    for (size_t i = 0; i < nbytes; i += 64) __builtin_prefetch(from + i);
}

struct RowF32 {
    static constexpr size_t kBytes = 4;
    static HETRUN_INLINE Vf load(const uint8_t* p) { return load_floats(reinterpret_cast<const float*>(p)); }
};
struct RowF16 {
    static constexpr size_t kBytes = 2;
    static HETRUN_INLINE Vf load(const uint8_t* p) { return load_half(p); }
};
struct RowBF16 {
    static constexpr size_t kBytes = 2;
    static HETRUN_INLINE Vf load(const uint8_t* p) {
        typedef uint16_t Vu16 __attribute__((vector_size(2 * kLanes)));
        Vu16 high;
        std::memcpy(&high, p, sizeof high);
        return as_floats(__builtin_convertvector(high, Vi) << 16);
    }
};

// The n < kLanes elements at p, and zeros.
template <class Row>
HETRUN_INLINE Vf load_some(const uint8_t* p, size_t n) {
    uint8_t own[kLanes * Row::kBytes] = {};
    std::memcpy(own, p, n * Row::kBytes);
    return Row::load(own);
}

template <class Row>
inline void widen(const uint8_t* row, size_t n, float* out) {
    size_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store_floats(out + i, Row::load(row + Row::kBytes * i));
    if (i == n) return;
    const Vf last = load_some<Row>(row + Row::kBytes * i, n - i);
    std::memcpy(out + i, &last, (n - i) * sizeof(float));
}

template <class Row>
void dequantize_floats(const uint8_t* row, size_t n, float* out) {
    widen<Row>(row, n, out);
}

// Bytes of a row ahead of their use for which memory is asked, of each of the rows that pass together.
constexpr size_t kFloatsAhead = 2048;

// R rows times T tokens, from the rows in memory.
template <class Row, int R, int T>
inline void float_rows(const uint8_t* row, size_t row_bytes, size_t n, const float* a, size_t a_stride, float* out, size_t out_stride) {
    constexpr size_t kStep = 64 / Row::kBytes;  // of a cache line
    Vf acc[R][T] = {};
    const auto add = [&](const Vf(&w)[R], size_t i) HETRUN_INLINE_LAMBDA {
        unrolled<T>([&](auto t) HETRUN_INLINE_LAMBDA {
            const Vf x = load_floats(a + t * a_stride + i);
            unrolled<R>([&](auto r) HETRUN_INLINE_LAMBDA { acc[r][t] = fmadd(w[r], x, acc[r][t]); });
        });
    };
    const auto load = [&](size_t i) HETRUN_INLINE_LAMBDA {
        Vf w[R];
        unrolled<R>([&](auto r) HETRUN_INLINE_LAMBDA { w[r] = Row::load(row + r * row_bytes + Row::kBytes * i); });
        add(w, i);
    };
    size_t i = 0;
    for (; i + kStep <= n; i += kStep) {
        // Behind a row's end follow those R rows further on: the next ones are passing by its side.
        const size_t at = Row::kBytes * i + kFloatsAhead, ahead = at < row_bytes ? at : at + (R - 1) * row_bytes;
        for (size_t r = 0; r < R; ++r) __builtin_prefetch(row + r * row_bytes + ahead);
        unrolled<kStep / kLanes>([&](auto v) HETRUN_INLINE_LAMBDA { load(i + v * kLanes); });
    }
    for (; i + kLanes <= n; i += kLanes) load(i);
    if (i < n) {
        Vf w[R];
        for (size_t r = 0; r < R; ++r) w[r] = load_some<Row>(row + r * row_bytes + Row::kBytes * i, n - i);
        add(w, i);
    }
    for (int t = 0; t < T; ++t)
        for (int r = 0; r < R; ++r) out[static_cast<size_t>(t) * out_stride + static_cast<size_t>(r)] = lane_sum(acc[r][t]);
}

template <class Row, int T>
inline void few_tokens(const MatmulArgs& m, const float* a, size_t a_stride) {
    size_t r = 0;
    const auto rows = [&](auto count) HETRUN_INLINE_LAMBDA {
        float_rows<Row, decltype(count)::value, T>(m.weights + r * m.row_bytes, m.row_bytes, m.layout->n, a, a_stride, m.out + r,
                                                   m.out_stride);
    };
    for (; r + kTileRows <= m.n_rows; r += kTileRows) rows(std::integral_constant<int, kTileRows>{});
    for (; r < m.n_rows; ++r) rows(std::integral_constant<int, 1>{});
}

// Of a prompt, tokens whose sums one tile holds, the tiles that take their turns on some columns, and how many columns: rows and
// tokens of these are in the first-level cache.
constexpr int kFloatTokens = kLanes == 16 ? 6 : kTileTokens;
constexpr size_t kFloatTiles = 4, kFloatColumns = 512;

struct FloatTile {
    const float* w;  // [R, stride]
    const float* a;  // [T, a_stride]
    size_t stride, a_stride, n;
    float* sums;  // [T, kDecodedRows, kLanes], of columns before
    bool first;   // there are none
};

template <int R, int T>
inline void float_tile(const FloatTile& f) {
    Vf acc[R][T];
    unrolled<T>([&](auto t) HETRUN_INLINE_LAMBDA {
        unrolled<R>([&](auto r) HETRUN_INLINE_LAMBDA {
            acc[r][t] = f.first ? Vf{} : load_floats(f.sums + (t * kDecodedRows + r) * kLanes);
        });
    });
    for (size_t i = 0; i < f.n; i += kLanes) {
        Vf w[R];
        unrolled<R>([&](auto r) HETRUN_INLINE_LAMBDA { w[r] = load_floats(f.w + r * f.stride + i); });
        unrolled<T>([&](auto t) HETRUN_INLINE_LAMBDA {
            const Vf a = load_floats(f.a + t * f.a_stride + i);
            unrolled<R>([&](auto r) HETRUN_INLINE_LAMBDA { acc[r][t] = fmadd(w[r], a, acc[r][t]); });
        });
    }
    unrolled<T>([&](auto t) HETRUN_INLINE_LAMBDA {
        unrolled<R>([&](auto r) HETRUN_INLINE_LAMBDA { store_floats(f.sums + (t * kDecodedRows + r) * kLanes, acc[r][t]); });
    });
}

// n_rows widened rows with T tokens.
template <int T>
inline void float_tiles(FloatTile f, size_t n_rows) {
    const auto next = [&](size_t n) {
        f.w += n * f.stride;
        f.sums += n * kLanes;
    };
    size_t r = 0;
    for (; r + kTileRows <= n_rows; r += kTileRows, next(kTileRows)) float_tile<kTileRows, T>(f);
    for (; r < n_rows; ++r, next(1)) float_tile<1, T>(f);
}

// n_rows widened rows with up to kFloatTiles * kFloatTokens tokens.
inline void float_block(const float* w, size_t n_rows, size_t padded, const float* a, size_t a_stride, size_t n_tokens, float* out,
                        size_t out_stride) {
    alignas(64) float sums[kFloatTiles * kFloatTokens * kDecodedRows * kLanes];
    for (size_t column = 0; column < padded; column += kFloatColumns) {
        const size_t n = padded - column < kFloatColumns ? padded - column : kFloatColumns;
        for (size_t t = 0; t < n_tokens; t += kFloatTokens) {
            const FloatTile f = {w + column, a + t * a_stride + column, padded, a_stride, n, sums + t * kDecodedRows * kLanes, column == 0};
            const size_t left = n_tokens - t;
            unrolled<kFloatTokens>([&](auto i) HETRUN_INLINE_LAMBDA {
                constexpr int T = decltype(i)::value + 1;
                if (left == T || (T == kFloatTokens && left > T)) float_tiles<T>(f, n_rows);
            });
        }
    }
    for (size_t t = 0; t < n_tokens; ++t)
        for (size_t r = 0; r < n_rows; ++r) out[t * out_stride + r] = lane_sum(load_floats(sums + (t * kDecodedRows + r) * kLanes));
}

template <class Row>
void matmul_floats(const MatmulArgs& m) {
    const size_t n = m.layout->n, padded = round_up(n, kLanes), a_stride = m.layout->stride / sizeof(float);
    const float* a = reinterpret_cast<const float*>(m.prepared + m.layout->floats);
    if (m.n_tokens == 1) return few_tokens<Row, 1>(m, a, a_stride);
    if (m.n_tokens == 2) return few_tokens<Row, 2>(m, a, a_stride);
    float* w = reinterpret_cast<float*>(m.scratch);
    for (size_t first = 0; first < m.n_rows; first += kDecodedRows) {
        const size_t rows = m.n_rows - first < kDecodedRows ? m.n_rows - first : kDecodedRows;
        for (size_t r = 0; r < rows; ++r) {
            const uint8_t* row = m.weights + (first + r) * m.row_bytes;
            prefetch(row + kPrefetchBytes, m.row_bytes);
            widen<Row>(row, n, w + r * padded);
            for (size_t i = n; i < padded; ++i) w[r * padded + i] = 0.0f;
        }
        for (size_t t = 0; t < m.n_tokens; t += kFloatTiles * kFloatTokens) {
            const size_t left = m.n_tokens - t, tokens = left < kFloatTiles * kFloatTokens ? left : kFloatTiles * kFloatTokens;
            float_block(w, rows, padded, a + t * a_stride, a_stride, tokens, m.out + t * m.out_stride + first, m.out_stride);
        }
    }
}

}  // namespace
}  // namespace hetrun::cpu
