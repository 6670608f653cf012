// Kernels of types, as a translation unit defines them for its instruction set: compiled with its flags, HETRUN_ISA its name and
// HETRUN_ISA_HEADER its header. The types are spread over a few units, which compile side by side.
//
// Only what the compiler inlines may be used in those units: a function with external linkage (of a standard header, say)
// compiled with these flags could be the one that the linker keeps for the whole library.
#pragma once

#include HETRUN_ISA_HEADER

// clang-format off
#include "vector.h"
#include "decode.h"
#include "decode_32.h"
#include "decode_64.h"
#include "decode_256.h"
#include "floats.h"
#include "matmul.h"
#ifdef HETRUN_PACKED
#include "packed.h"
#include "dots.h"
#ifdef HETRUN_NARROW_GEMV
#include "gemv_narrow.h"
#else
#include "gemv.h"
#endif
#include "panel_weights.h"
#ifdef HETRUN_TILES
#include "gemm_tiles.h"
#else
#include "gemm_vectors.h"
#endif
#include "gemm.h"
#include "lookup.h"
#endif
// clang-format on

#define HETRUN_JOIN(a, b) kernels_##a##_##b
#define HETRUN_NAME(isa, type) HETRUN_JOIN(isa, type)

// Weights that are codes with scales, the same with a packed form, and weights that are floats.
#define HETRUN_TYPE(type, ...)                                 \
    extern const TypeKernels HETRUN_NAME(HETRUN_ISA, type);    \
    const TypeKernels HETRUN_NAME(HETRUN_ISA, type) = {__VA_ARGS__};
#define HETRUN_CODES(type) HETRUN_TYPE(type, matmul_codes<Codec##type>, dequantize_codes<Codec##type>, nullptr, nullptr, nullptr)
#define HETRUN_FLOATS(type) HETRUN_TYPE(type, matmul_floats<Row##type>, widen<Row##type>, nullptr, nullptr, nullptr)
#ifdef HETRUN_PACKED
#define HETRUN_PACKED_CODES(type) \
    HETRUN_TYPE(type, matmul_codes<Codec##type>, dequantize_codes<Codec##type>, gemv<Packed##type>, gemm<Packed##type>, \
                lookup<Packed##type>)
#else
#define HETRUN_PACKED_CODES(type) HETRUN_CODES(type)
#endif
