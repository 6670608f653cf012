// BF16 by dot products of pairs, which activations are rounded for: as llama.cpp has it. Compiled once, for all that have AVX-512
// with BF16: in no table of its own (isa.cpp).
#include "types.h"

namespace hetrun::cpu {

namespace {

struct Pairs : RowBF16 {
    using Element = uint16_t;
    using Vector = Vi;
    static constexpr size_t kColumns = 2 * kLanes;
    static size_t activations(const PreparedLayout& layout) { return layout.bf16; }
    static HETRUN_INLINE Vi elements(const uint16_t* p) { return load_ints(p); }
    static HETRUN_INLINE Vi load(const uint8_t* p) { return load_ints(p); }
    static HETRUN_INLINE Vf add(Vf acc, Vi w, Vi a) { return _mm512_dpbf16_ps(acc, (__m512bh)w, (__m512bh)a); }
};

}  // namespace

HETRUN_TYPE(BF16, matmul_floats<Pairs>, widen<RowBF16>, nullptr, nullptr, nullptr)

}  // namespace hetrun::cpu
