// The table of inner kernels: one per instruction set, chosen once when a device is opened.
//
// Every kernel computes a row (or a row and a token) with an order of operations that depends on the shapes of that row alone,
// never on how many rows or tokens a call covers: so results do not depend on threads, and a prefill equals single steps.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hetrun::cpu {

inline size_t round_up(size_t n, size_t step) { return (n + step - 1) / step * step; }

// 32 activations of each of 8 tokens, as the blocked matmul of packed weights wants them: codes of four at a time.
constexpr size_t kPanelTokens = 8;
struct PanelBlock {
    int8_t codes[8][kPanelTokens][4];
    float scale[kPanelTokens], half_sum32[kPanelTokens], sum32[kPanelTokens];
    int32_t neg32[kPanelTokens], neg16[2][kPanelTokens];
    float sum16[2][kPanelTokens];
};
static_assert(sizeof(PanelBlock) == 512, "prepared_width in hetrun_cpu/steps.py counts on it");

// The same for tiles, which want a token's codes side by side and tokens at one distance from each other, beyond the first 8
// too: blocks of two panels stand in turn.
struct TilePanel {
    enum { kScale, kHalfSum32, kSum32, kSum16 };  // numbers that the tokens have, kSum16 of the first half of the columns
    struct {
        int8_t codes[32];                // of a token
        float of_tokens[kPanelTokens];  // one of their numbers
    } rows[kPanelTokens];
};
static_assert(sizeof(TilePanel) == sizeof(PanelBlock), "either fits the memory of the other");

// There is memory for prepared rows in multiples of this: what a tile takes, PANEL_TOKENS in hetrun_cpu/steps.py.
constexpr size_t kPreparedRows = 2 * kPanelTokens;

// A row of activations as the matmul kernels want it, at byte offsets from the start of the row.
// int8: blocks of 32 codes in [-127, 127], x = scale * code; sum32 and sum16 hold scale * (sum of 32 or 16 codes).
// Scales have the 11 significant bits that llama.cpp gives them (a half's, but with float's range). half_sum32 is sum32 by the
// scale before rounding, then rounded, as llama.cpp's Q8_1 has it for Q4_1 and Q5_1: results stay within the noise that its
// own batch sizes have, which the more exact sums do not (KL 4.0e-3 against 3.7e-3, its own 3.3e-3, on SmolLM2).
// A block that holds a NaN or an infinity has scale NaN, so that whatever reads it becomes NaN.
// neg32 and neg16: the negated sums of 32 or 16 codes, int32: what an unsigned weight's offset is taken back with.
// floats: the activations as they are, with zeros up to a multiple of 16. bf16: rounded to BF16, with zeros up to a multiple of 32,
// where the kernels want them.
struct PreparedLayout {
    size_t n = 0;
    size_t scale = 0, sum32 = 0, half_sum32 = 0, sum16 = 0, neg32 = 0, neg16 = 0;
    size_t floats = 0, bf16 = 0;
    size_t stride = 0;
    size_t panel = 0;  // bytes of a panel of kPanelTokens rows, which follow all rows; 0 without int8

    bool has_codes() const { return panel != 0; }
    bool has_floats() const { return stride > floats; }

    PreparedLayout() = default;
    PreparedLayout(size_t width, bool int8, bool kept_float) : n(width) {
        size_t end = 0;
        if (int8) {
            const size_t scale_bytes = round_up(width / 32, 16) * sizeof(float);
            scale = round_up(width, 64);
            sum32 = scale + scale_bytes;
            half_sum32 = sum32 + scale_bytes;
            sum16 = half_sum32 + scale_bytes;
            neg32 = sum16 + 2 * scale_bytes;
            neg16 = neg32 + scale_bytes;
            end = neg16 + 2 * scale_bytes;
            panel = width / 32 * sizeof(PanelBlock);
        }
        floats = end;
        bf16 = end + round_up(width, 16) * sizeof(float);
        stride = kept_float ? bf16 + round_up(width, 32) * sizeof(uint16_t) : end;
    }
};

struct MatmulArgs {
    const uint8_t* weights;  // the first of the rows, raw GGUF blocks
    size_t row_bytes;
    size_t n_rows;
    const uint8_t* prepared;  // the first token
    const PreparedLayout* layout;
    size_t n_tokens;
    float* out;  // [n_tokens, out_stride]
    size_t out_stride;
    uint8_t* scratch;  // matmul_scratch_bytes, 64-byte aligned
};

// One token with whole groups of packed rows (pack.h): out[16 * n_groups].
struct GemvArgs {
    const uint8_t* groups;
    size_t group_bytes, n_groups;
    const uint8_t* prepared;
    const PreparedLayout* layout;
    float* out;
};

// All tokens with 16 or 32 packed rows: out[n_tokens, kPanelRows].
constexpr size_t kPanelRows = 32;
struct GemmArgs {
    const uint8_t* groups;
    size_t group_bytes, n_groups;  // 1 or 2
    const uint8_t* panels;
    const PreparedLayout* layout;
    size_t n_tokens;
    float* out;
    uint8_t* scratch;  // kGemmScratchBytes, 64-byte aligned
};

// Columns whose decoded weights stay in the first-level cache while all tokens pass.
constexpr size_t kGemmColumns = 1024;
constexpr size_t kGemmScratchBytes = kGemmColumns / 32 * (kPanelRows * 32 + 4 * kPanelRows * sizeof(float));

// Rows decoded at a time: more where many tokens share them.
constexpr size_t kDecodedRows = 16;

inline size_t matmul_scratch_bytes(size_t n) {
    const size_t codes = round_up(n, 64) + 2 * round_up(n / 16, 16) * sizeof(float);
    const size_t floats = round_up(n, 16) * sizeof(float);
    const size_t halves = 2 * round_up(n / 32, 16) * sizeof(uint16_t);
    return kDecodedRows * ((codes > floats ? codes : floats) + halves);
}

enum class KvFormat : uint32_t { F32 = 0, F16 = 1, Q8_0 = 2, KV4 = 3, KV4H = 4 };

// Bytes of the keys (or values) of one head and token.
inline size_t kv_row_bytes(KvFormat format, size_t head_dim) {
    switch (format) {
        case KvFormat::F32: return head_dim * 4;
        case KvFormat::F16: return head_dim * 2;
        case KvFormat::Q8_0: return head_dim / 32 * 34;
        default: return head_dim / 2 + 4;
    }
}

// Cells whose keys lie interleaved, element by element.
constexpr size_t kKeyGroup = 16;
// Cells whose keys and values are widened at once, and after how many of them a softmax starts anew.
constexpr size_t kAttendTile = 64, kAttendSplit = 256;
// Queries that share what was widened: as many as make that a tenth of the work.
constexpr size_t kAttendRows = 48;
// Below every score there is, and finite: the difference of two of them is no NaN.
constexpr float kLowestScore = -3e38f;

// The cells that a query sees: [begin_low, end_low) and [begin_high, end_high).
struct CellSpan {
    size_t begin_low, end_low, begin_high, end_high;

    size_t end() const { return end_high > end_low ? end_high : end_low; }
};

struct AttendArgs {
    KvFormat format;
    const uint8_t* keys;    // of one slot and KV head: [splits][cells / kKeyGroup, head_dim, kKeyGroup]
    const uint8_t* values;  // [splits][cells, head_dim]
    size_t split_bytes;     // from one split to the next, of keys as of values
    const uint8_t* next_keys;  // what is read after `end`, or null
    const uint8_t* next_values;
    const CellSpan* spans;  // of each token, in order of position
    size_t n_tokens;
    size_t begin, end;  // cells to work on; begin is a multiple of kAttendSplit
    size_t head_dim;
    size_t n_heads;  // query heads that share the keys
    float* q;        // [n_tokens, n_heads, head_dim rounded up to 16]; the kernel may round it
    float scale, soft_cap;
    float* sums;     // result: [n_tokens, n_heads, attend_sum_stride]
    float* largest;  // result: [n_tokens, n_heads]
    float* scratch;  // attend_scratch_floats
};

// Cells of so many tokens at most, and their queries.
inline size_t attend_query_bytes(size_t head_dim, size_t n_rows) {
    return round_up(n_rows * (sizeof(CellSpan) + round_up(head_dim, 16) * sizeof(float)), 64);
}
// Weighted values of one query, head_dim rounded up to 16, then the total of the weights in lanes.
inline size_t attend_sum_stride(size_t head_dim) { return round_up(head_dim, 16) + 16; }
inline size_t attend_tile_floats(size_t head_dim, size_t n_rows) {
    return (2 * round_up(head_dim, 16) + n_rows) * kAttendTile;
}
// Sums with their largest scores.
inline size_t attend_part_floats(size_t head_dim, size_t n_rows) {
    return n_rows * attend_sum_stride(head_dim) + round_up(n_rows, 16);
}
inline size_t attend_scratch_floats(size_t head_dim, size_t n_rows) {
    return attend_tile_floats(head_dim, n_rows) + attend_part_floats(head_dim, n_rows);
}

// Rows of weights decoded to int8, as the dot products of an instruction set take them.
struct Decoded {
    int8_t* codes;
    float* scales;  // of each sub-block of 16 or 32, zeros up to a multiple of 16
    float* minima;  // the same, where the type has them
    size_t code_stride, scale_stride;
};

constexpr size_t kTypes = 64;

// Kernels of one type of weights.
struct TypeKernels {
    void (*matmul)(const MatmulArgs&);
    void (*dequantize)(const uint8_t*, size_t n, float* out);  // one row
    void (*gemv)(const GemvArgs&);                             // of packed weights, null where the type has no packed form
    void (*gemm)(const GemmArgs&);
    void (*lookup)(const uint8_t* group, size_t row, size_t n, float* out);  // one row of 16 packed ones, as dequantize gives it
};

struct Kernels {
    const TypeKernels* types[kTypes];  // by type number, null where there are none
    // Panels whose blocks stand in turn: the first of each, the second of each, ...
    size_t panels_together;
    bool bf16_activations;  // wanted by weights of BF16
    // n columns of 8 tokens, normed first if there are weights for it, into blocks of their panel, which are `stride` bytes
    // apart; null where no type has a packed form.
    void (*prepare_panel)(const float* const* rows, const float* norm, float eps, size_t n, uint8_t* panel, size_t stride);
    void (*prepare_int8)(const float* x, const PreparedLayout&, uint8_t* out);
    void (*rms_norm)(const float* x, const float* weight, size_t n, float eps, float* out);
    // Rotates one head. half: pairs (i, i + n_pairs), else (2i, 2i + 1). `out` may be `x`.
    void (*rope)(const float* x, const float* cosines, const float* sines, size_t head_dim, size_t n_pairs, bool half, float* out);
    void (*gated)(uint32_t function, const float* gate, const float* up, size_t n, float* out);
    void (*add)(const float* a, const float* b, size_t n, float* out);
    void (*scale)(const float* x, float factor, size_t n, float* out);
    void (*soft_cap)(const float* x, float cap, size_t n, float* out);
    void (*kv_store_key)(KvFormat, float* x, size_t head_dim, uint8_t* group, size_t lane, uint8_t* row);  // x and row are used up
    void (*kv_store_value)(KvFormat, float* x, size_t head_dim, uint8_t* out);
    void (*attend)(const AttendArgs&);
    void (*attend_merge)(size_t head_dim, float* sums, float& largest, float* other, float other_largest);
    void (*attend_finish)(KvFormat, size_t head_dim, float* sums, float* out);
    void (*hadamard)(float* x, size_t n);

    size_t panel_stride() const { return panels_together * sizeof(PanelBlock); }
    // Where the panel of token t begins, a multiple of kPanelTokens.
    uint8_t* panel_of(uint8_t* panels, const PreparedLayout& layout, size_t t) const {
        const size_t panel = t / kPanelTokens, own = panel % panels_together;
        return panels + (panel - own) * layout.panel + own * sizeof(PanelBlock);
    }
};

// Kernels of a hetrun_isa, or null where the library has none. Whether the machine can run them: isa_mask().
const Kernels* kernels_of(int isa);
uint32_t isa_mask();

}  // namespace hetrun::cpu
