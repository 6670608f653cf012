// Which instruction sets this machine has, and the kernels for each.
#include "hetrun_cpu.h"
#include "kernels.h"

#if defined(__linux__) && (defined(__aarch64__) || defined(__arm__))
#include <sys/auxv.h>
#endif

namespace hetrun::cpu {

extern const Kernels kernels_generic_all;
#ifdef HETRUN_WITH_X86
extern const Kernels kernels_avx2_all;
extern const Kernels kernels_avx512_all;
#endif
#ifdef HETRUN_WITH_NEON
extern const Kernels kernels_neon_all;
#endif
#ifdef HETRUN_WITH_DOTPROD
extern const Kernels kernels_dotprod_all;
#endif

const Kernels* kernels_of(int isa) {
    switch (isa) {
        case HETRUN_ISA_GENERIC: return &kernels_generic_all;
#ifdef HETRUN_WITH_X86
        case HETRUN_ISA_AVX2: return &kernels_avx2_all;
        case HETRUN_ISA_AVX512: return &kernels_avx512_all;
#endif
#ifdef HETRUN_WITH_NEON
        case HETRUN_ISA_NEON: return &kernels_neon_all;
#endif
#ifdef HETRUN_WITH_DOTPROD
        case HETRUN_ISA_DOTPROD: return &kernels_dotprod_all;
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
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni"))
        mask |= 1u << HETRUN_ISA_AVX512;
#endif
#if defined(HETRUN_WITH_NEON) && defined(__aarch64__)
    mask |= 1u << HETRUN_ISA_NEON;
#elif defined(HETRUN_WITH_NEON)
    if (getauxval(AT_HWCAP) & (1ul << 12)) mask |= 1u << HETRUN_ISA_NEON;  // HWCAP_NEON of 32-bit ARM
#endif
#ifdef HETRUN_WITH_DOTPROD
    if (getauxval(AT_HWCAP) & (1ul << 20)) mask |= 1u << HETRUN_ISA_DOTPROD;  // HWCAP_ASIMDDP
#endif
    return mask;
}

}  // namespace hetrun::cpu
