// Which instruction sets this machine has, and the kernels for each.
#include "gguf_blocks.h"
#include "hetrun_cpu.h"
#include "kernels.h"

#if defined(HETRUN_WITH_X86) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__linux__) && (defined(__aarch64__) || defined(__arm__))
#include <sys/auxv.h>
#endif

namespace hetrun::cpu {

extern const Kernels kernels_generic_all;
#ifdef HETRUN_WITH_X86
extern const Kernels kernels_avx2_all;
extern const Kernels kernels_avxvnni_all;
extern const Kernels kernels_avx512_all;
extern const Kernels kernels_amx_all;
extern const TypeKernels kernels_avx512_bf16_BF16;
#endif
#ifdef HETRUN_WITH_NEON
extern const Kernels kernels_neon_all;
#endif
#ifdef HETRUN_WITH_DOTPROD
extern const Kernels kernels_dotprod_all;
#endif
#ifdef HETRUN_WITH_I8MM
extern const Kernels kernels_i8mm_all;
#endif

#ifdef HETRUN_WITH_X86
namespace {

// The same with dot products of BF16, which round activations as they go: so weights of BF16 alone have them.
Kernels with_bf16(Kernels kernels) {
    kernels.types[static_cast<size_t>(TensorType::BF16)] = &kernels_avx512_bf16_BF16;
    kernels.bf16_activations = true;
    return kernels;
}

// AMX-INT8, and the system's leave to use tiles. Threads save 8 KB more from then on, if they do use them. The system refuses
// where the stack of a signal handler has no room for that, or where it is too old to know tiles.
bool may_use_tiles() {
#if defined(__linux__) && defined(__x86_64__)
    constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25;      // CPUID 7.0, EDX
    constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kTile) == 0 || (d & kInt8) == 0) return false;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}

}  // namespace
#endif

const Kernels* kernels_of(int isa) {
    switch (isa) {
        case HETRUN_ISA_GENERIC: return &kernels_generic_all;
#ifdef HETRUN_WITH_X86
        case HETRUN_ISA_AVX2: return &kernels_avx2_all;
        case HETRUN_ISA_AVXVNNI: return &kernels_avxvnni_all;
        case HETRUN_ISA_AVX512: return &kernels_avx512_all;
        case HETRUN_ISA_AVX512_BF16: {
            static const Kernels kernels = with_bf16(kernels_avx512_all);
            return &kernels;
        }
        case HETRUN_ISA_AMX: {
            static const Kernels kernels = with_bf16(kernels_amx_all);
            return &kernels;
        }
#endif
#ifdef HETRUN_WITH_NEON
        case HETRUN_ISA_NEON: return &kernels_neon_all;
#endif
#ifdef HETRUN_WITH_DOTPROD
        case HETRUN_ISA_DOTPROD: return &kernels_dotprod_all;
#endif
#ifdef HETRUN_WITH_I8MM
        case HETRUN_ISA_I8MM: return &kernels_i8mm_all;
#endif
        default: return nullptr;
    }
}

uint32_t isa_mask() {
    uint32_t mask = 1u << HETRUN_ISA_GENERIC;
#ifdef HETRUN_WITH_X86
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (avx2) mask |= 1u << HETRUN_ISA_AVX2;
    if (avx2 && __builtin_cpu_supports("avxvnni")) mask |= 1u << HETRUN_ISA_AVXVNNI;
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni"))
        mask |= 1u << HETRUN_ISA_AVX512;
    if ((mask >> HETRUN_ISA_AVX512 & 1) && __builtin_cpu_supports("avx512bf16")) mask |= 1u << HETRUN_ISA_AVX512_BF16;
    if ((mask >> HETRUN_ISA_AVX512_BF16 & 1) && may_use_tiles()) mask |= 1u << HETRUN_ISA_AMX;
#endif
#if defined(HETRUN_WITH_NEON) && defined(__aarch64__)
    mask |= 1u << HETRUN_ISA_NEON;
#elif defined(HETRUN_WITH_NEON)
    if (getauxval(AT_HWCAP) & (1ul << 12)) mask |= 1u << HETRUN_ISA_NEON;  // HWCAP_NEON of 32-bit ARM
#endif
#ifdef HETRUN_WITH_DOTPROD
    if (getauxval(AT_HWCAP) & (1ul << 20)) mask |= 1u << HETRUN_ISA_DOTPROD;  // HWCAP_ASIMDDP
#endif
#ifdef HETRUN_WITH_I8MM
    if ((mask & 1u << HETRUN_ISA_DOTPROD) && (getauxval(AT_HWCAP2) & (1ul << 13))) mask |= 1u << HETRUN_ISA_I8MM;  // HWCAP2_I8MM
#endif
    return mask;
}

}  // namespace hetrun::cpu
