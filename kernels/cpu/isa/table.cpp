// One translation unit per instruction set: compiled with its flags, and HETRUN_ISA_HEADER naming its header.
//
// Only what the compiler inlines may be used here: a function with external linkage (of a standard header, say) compiled with
// these flags could be the one that the linker keeps for the whole library.
#include HETRUN_ISA_HEADER

// clang-format off
#include "decode.h"
#include "matmul.h"
#include "rowwise.h"
#include "attend.h"
#ifdef HETRUN_PACKED
#include "packed.h"
#endif
// clang-format on

namespace hetrun::cpu {
namespace {

template <class Codec>
constexpr void enter(Kernels& k, TensorType type) {
    k.matmul[static_cast<size_t>(type)] = matmul_codes<Codec>;
    k.dequantize[static_cast<size_t>(type)] = dequantize_codes<Codec>;
}

template <class Row>
constexpr void enter_floats(Kernels& k, TensorType type) {
    k.matmul[static_cast<size_t>(type)] = matmul_floats<Row>;
    k.dequantize[static_cast<size_t>(type)] = dequantize_floats<Row>;
}

#ifdef HETRUN_PACKED
template <class Packed>
constexpr void enter_packed(Kernels& k, TensorType type) {
    k.gemv[static_cast<size_t>(type)] = gemv<Packed>;
    k.gemm[static_cast<size_t>(type)] = gemm<Packed>;
}

constexpr void enter_all_packed(Kernels& k) {
    enter_packed<PackedQ4_0>(k, TensorType::Q4_0);
    enter_packed<PackedQ4_1>(k, TensorType::Q4_1);
    enter_packed<PackedQ5_0>(k, TensorType::Q5_0);
    enter_packed<PackedQ5_1>(k, TensorType::Q5_1);
    enter_packed<PackedQ8_0>(k, TensorType::Q8_0);
    enter_packed<PackedQ2_K>(k, TensorType::Q2_K);
    enter_packed<PackedQ3_K>(k, TensorType::Q3_K);
    enter_packed<PackedQ4_K>(k, TensorType::Q4_K);
    enter_packed<PackedQ5_K>(k, TensorType::Q5_K);
    enter_packed<PackedQ6_K>(k, TensorType::Q6_K);
}
#else
constexpr void enter_all_packed(Kernels&) {}  // rows as GGUF has them
#endif

constexpr Kernels table() {
    Kernels k{};
    enter_floats<RowF32>(k, TensorType::F32);
    enter_floats<RowF16>(k, TensorType::F16);
    enter_floats<RowBF16>(k, TensorType::BF16);
    enter<CodecQ4_0>(k, TensorType::Q4_0);
    enter<CodecQ4_1>(k, TensorType::Q4_1);
    enter<CodecQ5_0>(k, TensorType::Q5_0);
    enter<CodecQ5_1>(k, TensorType::Q5_1);
    enter<CodecQ8_0>(k, TensorType::Q8_0);
    enter<CodecQ2_K>(k, TensorType::Q2_K);
    enter<CodecQ3_K>(k, TensorType::Q3_K);
    enter<CodecQ4_K>(k, TensorType::Q4_K);
    enter<CodecQ5_K>(k, TensorType::Q5_K);
    enter<CodecQ6_K>(k, TensorType::Q6_K);
    enter<CodecIQ4_NL>(k, TensorType::IQ4_NL);
    enter<CodecIQ4_XS>(k, TensorType::IQ4_XS);
    enter<CodecTQ1_0>(k, TensorType::TQ1_0);
    enter<CodecTQ2_0>(k, TensorType::TQ2_0);
    enter<CodecMXFP4>(k, TensorType::MXFP4);
    enter_all_packed(k);
    k.prepare_int8 = prepare_int8;
    k.fill_panel = fill_panel;
    k.rms_norm = rms_norm;
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

}  // namespace

extern const Kernels HETRUN_KERNELS;
constexpr Kernels kTable = table();
const Kernels HETRUN_KERNELS = kTable;

}  // namespace hetrun::cpu
