// Rows of floats times prepared tokens. A lane adds products of the same columns in the same order, then the lanes are added, for one
// token, which meets rows as they lie in memory, and for prompts, whose rows are widened first.
#pragma once

namespace hetrun::cpu {
namespace {

// How rows of a type meet tokens. load: kColumns elements of a row in memory. Of a prompt rows are elements first, `widen` makes
// them, as the activations are always.
struct FloatProducts {
    using Element = float;
    using Vector = Vf;
    static constexpr size_t kColumns = kLanes;
    static size_t activations(const PreparedLayout& layout) { return layout.floats; }
    static HETRUN_INLINE Vf elements(const float* p) { return load_floats(p); }
    static HETRUN_INLINE Vf add(Vf acc, Vf w, Vf a) { return fmadd(w, a, acc); }
};
struct RowF32 : FloatProducts {
    static constexpr size_t kBytes = 4;
    static HETRUN_INLINE Vf load(const uint8_t* p) { return load_floats(reinterpret_cast<const float*>(p)); }
};
struct RowF16 : FloatProducts {
    static constexpr size_t kBytes = 2;
    static HETRUN_INLINE Vf load(const uint8_t* p) { return load_half(p); }
};
struct RowBF16 : FloatProducts {
    static constexpr size_t kBytes = 2;
    static HETRUN_INLINE Vf load(const uint8_t* p) {
        typedef uint16_t Vu16 __attribute__((vector_size(2 * kLanes)));
        Vu16 high;
        std::memcpy(&high, p, sizeof high);
        return as_floats(__builtin_convertvector(high, Vi) << 16);
    }
};

// The n < kColumns elements at p, and zeros.
template <class Row>
HETRUN_INLINE typename Row::Vector load_some(const uint8_t* p, size_t n) {
    uint8_t own[Row::kColumns * Row::kBytes] = {};
    std::memcpy(own, p, n * Row::kBytes);
    return Row::load(own);
}

template <class Row>
void widen(const uint8_t* row, size_t n, typename Row::Element* out) {
    using Vector = typename Row::Vector;
    size_t i = 0;
    for (; i + Row::kColumns <= n; i += Row::kColumns) {
        const Vector all = Row::load(row + Row::kBytes * i);
        std::memcpy(out + i, &all, sizeof all);
    }
    if (i == n) return;
    const Vector last = load_some<Row>(row + Row::kBytes * i, n - i);
    std::memcpy(out + i, &last, (n - i) * sizeof *out);
}

// R rows times T tokens, from the rows in memory. Memory is asked for the R rows behind them in the order in which they lie there,
// into the second-level cache: R streams at once make it slower (two threads of a Zen 4, F16: 27 of 37 GB/s, in order 35).
template <class Row, int R, int T>
inline void float_rows(const uint8_t* row, size_t row_bytes, size_t n, const typename Row::Element* a, size_t a_stride, float* out,
                       size_t out_stride) {
    using Vector = typename Row::Vector;
    constexpr size_t kStep = 64 / Row::kBytes;  // of a cache line
    static_assert(kStep % Row::kColumns == 0, "whole vectors");
    Vf acc[R][T] = {};
    const auto add = [&](const Vector(&w)[R], size_t i) HETRUN_INLINE_LAMBDA {
        unrolled<T>([&](auto t) HETRUN_INLINE_LAMBDA {
            const Vector x = Row::elements(a + t * a_stride + i);
            unrolled<R>([&](auto r) HETRUN_INLINE_LAMBDA { acc[r][t] = Row::add(acc[r][t], w[r], x); });
        });
    };
    const auto load = [&](size_t i) HETRUN_INLINE_LAMBDA {
        Vector w[R];
        unrolled<R>([&](auto r) HETRUN_INLINE_LAMBDA { w[r] = Row::load(row + r * row_bytes + Row::kBytes * i); });
        add(w, i);
    };
    size_t i = 0;
    for (; i + kStep <= n; i += kStep) {
        for (size_t r = 0; r < R; ++r) __builtin_prefetch(row + R * (row_bytes + Row::kBytes * i) + 64 * r, 0, 2);
        unrolled<kStep / Row::kColumns>([&](auto v) HETRUN_INLINE_LAMBDA { load(i + v * Row::kColumns); });
    }
    for (; i + Row::kColumns <= n; i += Row::kColumns) load(i);
    if (i < n) {
        Vector w[R];
        for (size_t r = 0; r < R; ++r) w[r] = load_some<Row>(row + r * row_bytes + Row::kBytes * i, n - i);
        add(w, i);
    }
    for (int t = 0; t < T; ++t)
        for (int r = 0; r < R; ++r) out[static_cast<size_t>(t) * out_stride + static_cast<size_t>(r)] = lane_sum(acc[r][t]);
}

template <class Row, int T>
inline void few_tokens(const MatmulArgs& m, const typename Row::Element* a, size_t a_stride) {
    size_t r = 0;
    const auto rows = [&](auto count) HETRUN_INLINE_LAMBDA {
        float_rows<Row, decltype(count)::value, T>(m.weights + r * m.row_bytes, m.row_bytes, m.layout->n, a, a_stride, m.out + r,
                                                   m.out_stride);
    };
    for (; r + kTileRows <= m.n_rows; r += kTileRows) rows(std::integral_constant<int, kTileRows>{});
    for (; r < m.n_rows; ++r) rows(std::integral_constant<int, 1>{});
}

// Of a prompt, tokens whose sums one tile holds, the tiles that take their turns on some columns, and the bytes of these in a
// row: rows and tokens of them are in the first-level cache.
constexpr int kFloatTokens = kLanes == 16 ? 6 : kTileTokens;
constexpr size_t kFloatTiles = 4, kFloatBytes = 2048;

template <class Row>
struct FloatTile {
    const typename Row::Element* w;  // [R, stride]
    const typename Row::Element* a;  // [T, a_stride]
    size_t stride, a_stride, n;
    float* sums;  // [T, kDecodedRows, kLanes], of columns before
    bool first;   // there are none
};

template <class Row, int R, int T>
inline void float_tile(const FloatTile<Row>& f) {
    using Vector = typename Row::Vector;
    Vf acc[R][T];
    unrolled<T>([&](auto t) HETRUN_INLINE_LAMBDA {
        unrolled<R>([&](auto r) HETRUN_INLINE_LAMBDA {
            acc[r][t] = f.first ? Vf{} : load_floats(f.sums + (t * kDecodedRows + r) * kLanes);
        });
    });
    for (size_t i = 0; i < f.n; i += Row::kColumns) {
        Vector w[R];
        unrolled<R>([&](auto r) HETRUN_INLINE_LAMBDA { w[r] = Row::elements(f.w + r * f.stride + i); });
        unrolled<T>([&](auto t) HETRUN_INLINE_LAMBDA {
            const Vector a = Row::elements(f.a + t * f.a_stride + i);
            unrolled<R>([&](auto r) HETRUN_INLINE_LAMBDA { acc[r][t] = Row::add(acc[r][t], w[r], a); });
        });
    }
    unrolled<T>([&](auto t) HETRUN_INLINE_LAMBDA {
        unrolled<R>([&](auto r) HETRUN_INLINE_LAMBDA { store_floats(f.sums + (t * kDecodedRows + r) * kLanes, acc[r][t]); });
    });
}

// n_rows widened rows with T tokens.
template <class Row, int T>
inline void float_tiles(FloatTile<Row> f, size_t n_rows) {
    const auto next = [&](size_t n) {
        f.w += n * f.stride;
        f.sums += n * kLanes;
    };
    size_t r = 0;
    for (; r + kTileRows <= n_rows; r += kTileRows, next(kTileRows)) float_tile<Row, kTileRows, T>(f);
    for (; r < n_rows; ++r, next(1)) float_tile<Row, 1, T>(f);
}

// n_rows widened rows with up to kFloatTiles * kFloatTokens tokens.
template <class Row>
inline void float_block(const typename Row::Element* w, size_t n_rows, size_t padded, const typename Row::Element* a, size_t a_stride,
                        size_t n_tokens, float* out, size_t out_stride) {
    constexpr size_t kColumns = kFloatBytes / sizeof *w;
    alignas(64) float sums[kFloatTiles * kFloatTokens * kDecodedRows * kLanes];
    for (size_t column = 0; column < padded; column += kColumns) {
        const size_t n = padded - column < kColumns ? padded - column : kColumns;
        for (size_t t = 0; t < n_tokens; t += kFloatTokens) {
            const FloatTile<Row> f = {w + column, a + t * a_stride + column, padded, a_stride, n, sums + t * kDecodedRows * kLanes,
                                      column == 0};
            const size_t left = n_tokens - t;
            unrolled<kFloatTokens>([&](auto i) HETRUN_INLINE_LAMBDA {
                constexpr int T = decltype(i)::value + 1;
                if (left == T || (T == kFloatTokens && left > T)) float_tiles<Row, T>(f, n_rows);
            });
        }
    }
    for (size_t t = 0; t < n_tokens; ++t)
        for (size_t r = 0; r < n_rows; ++r) out[t * out_stride + r] = lane_sum(load_floats(sums + (t * kDecodedRows + r) * kLanes));
}

template <class Row>
void matmul_floats(const MatmulArgs& m) {
    using Element = typename Row::Element;
    const size_t n = m.layout->n, padded = round_up(n, Row::kColumns), a_stride = m.layout->stride / sizeof(Element);
    const Element* a = reinterpret_cast<const Element*>(m.prepared + Row::activations(*m.layout));
    if (m.n_tokens == 1) return few_tokens<Row, 1>(m, a, a_stride);
    if (m.n_tokens == 2) return few_tokens<Row, 2>(m, a, a_stride);
    Element* w = reinterpret_cast<Element*>(m.scratch);
    for (size_t first = 0; first < m.n_rows; first += kDecodedRows) {
        const size_t rows = m.n_rows - first < kDecodedRows ? m.n_rows - first : kDecodedRows;
        for (size_t r = 0; r < rows; ++r) {
            const uint8_t* row = m.weights + (first + r) * m.row_bytes;
            prefetch(row + kPrefetchBytes, m.row_bytes);
            widen<Row>(row, n, w + r * padded);
            for (size_t i = n; i < padded; ++i) w[r * padded + i] = Element{};
        }
        for (size_t t = 0; t < m.n_tokens; t += kFloatTiles * kFloatTokens) {
            const size_t left = m.n_tokens - t, tokens = left < kFloatTiles * kFloatTokens ? left : kFloatTiles * kFloatTokens;
            float_block<Row>(w, rows, padded, a + t * a_stride, a_stride, tokens, m.out + t * m.out_stride + first, m.out_stride);
        }
    }
}

}  // namespace
}  // namespace hetrun::cpu
