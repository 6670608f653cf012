// Everything but matmul, and the table of an instruction set.
#include "types.h"

// clang-format off
#include "rowwise.h"
#include "kv_cells.h"
#include "attend_products.h"
#include "attend_weights.h"
#include "attend.h"
#ifdef HETRUN_PANEL_ROWS
#include "panel_rows.h"
#elif defined(HETRUN_PACKED)
#include "panel.h"
#endif
// clang-format on

#define HETRUN_TYPES(X)                                                                                          \
    X(F32) X(F16) X(BF16) X(Q4_0) X(Q4_1) X(Q5_0) X(Q5_1) X(Q8_0) X(Q2_K) X(Q3_K) X(Q4_K) X(Q5_K) X(Q6_K) X(IQ4_NL) \
    X(IQ4_XS) X(TQ1_0) X(TQ2_0) X(MXFP4) X(W2S24) X(W2)

namespace hetrun::cpu {

#define HETRUN_DECLARE(type) extern const TypeKernels HETRUN_NAME(HETRUN_ISA, type);
HETRUN_TYPES(HETRUN_DECLARE)

namespace {

constexpr Kernels table() {
    Kernels k{};
#define HETRUN_ENTER(type) k.types[static_cast<size_t>(TensorType::type)] = &HETRUN_NAME(HETRUN_ISA, type);
    HETRUN_TYPES(HETRUN_ENTER)
    k.prepare_int8 = prepare_int8;
#ifdef HETRUN_PACKED
    k.panels_together = kPanelsTogether;
    k.prepare_panel = prepare_panel;
#else
    k.panels_together = 1;
#endif
    k.rms_norm = rms_norm;
    k.rope = rope;
    k.gated = gated;
    k.add = add;
    k.scale = scale;
    k.soft_cap = soft_cap;
    k.kv_store_key = kv_store_key;
    k.kv_store_value = kv_store_value;
    k.attend = attend;
    k.attend_merge = attend_merge;
    k.attend_finish = attend_finish;
    k.hadamard = hadamard;
    return k;
}

constexpr Kernels kTable = table();

}  // namespace

extern const Kernels HETRUN_NAME(HETRUN_ISA, all);
const Kernels HETRUN_NAME(HETRUN_ISA, all) = kTable;

}  // namespace hetrun::cpu
