// 32 packed rows with all tokens: weights are decoded into panels once for all of them.
#pragma once

namespace hetrun::cpu {
namespace {

// A share of the packed weights that come next, on their way from memory while tokens pass.
template <class C>
HETRUN_INLINE void fetch_share(const uint8_t* groups, const GemmArgs& g, size_t columns, size_t tile, size_t n_tiles) {
    const size_t nbytes = columns / C::kBlock * C::kBytes, begin = nbytes * tile / n_tiles, end = nbytes * (tile + 1) / n_tiles;
    for (size_t i = 0; i < g.n_groups; ++i)
        for (size_t at = begin; at < end; at += 64) __builtin_prefetch(groups + i * g.group_bytes + at, 0, 2);
}

template <class C>
void gemm(const GemmArgs& g) {
    static_assert(sizeof(Panel<C>) * (kPanelMostColumns / 32) <= kGemmScratchBytes, "a chunk fits its scratch");
    const Tiles tiles;
    Panel<C>* panel = reinterpret_cast<Panel<C>*>(g.scratch);
    const size_t n_vectors = 16 / kLanes * g.n_groups, n = g.layout->n;
    const size_t n_tiles = (g.n_tokens + kTokensAtOnce<C> - 1) / kTokensAtOnce<C>;
    const auto chunk = [n](size_t column) { return n - column <= kPanelMostColumns ? n - column : kPanelColumns; };
    for (size_t column = 0, columns = 0; column < n; column += columns) {
        columns = chunk(column);
        const size_t next = column + columns < n ? column + columns : 0;
        for (size_t i = 0; i < g.n_groups; ++i) {
            const uint8_t* group = g.groups + i * g.group_bytes;
            decode_panel<C>(group + column / C::kBlock * C::kBytes, columns / C::kBlock, group + n / C::kBlock * C::kBytes,
                            16 * i, panel);
        }
        asm volatile("" ::: "memory");  // for what reads tiles, of which the compiler does not know that it reads memory
        // The next columns, or the first ones of the rows that follow.
        const uint8_t* groups = g.groups + (next == 0 ? g.n_groups * g.group_bytes : next / C::kBlock * C::kBytes);
        for (size_t tile = 0; tile < n_tiles; ++tile) {
            const size_t t = tile * kTokensAtOnce<C>;
            const uint8_t* own = g.panels + t / kPanelTokens * g.layout->panel;
            // A later tile of a panel starts at its tokens' place in each of the arrays.
            const PanelBlock* a = reinterpret_cast<const PanelBlock*>(own + t % kPanelTokens * 4) + column / 32 * kPanelsTogether;
            fetch_share<C>(groups, g, chunk(next), tile, n_tiles);
            gemm_tokens<C>(panel, a, columns / 32, column == 0, n_vectors, g.n_tokens - t, g.out + t * kPanelRows);
        }
    }
}

}  // namespace
}  // namespace hetrun::cpu
