// What every instruction set does with its vectors Vf and Vi alike.
#pragma once

#include <cstring>
#include <type_traits>
#include <utility>

namespace hetrun::cpu {
namespace {

#define HETRUN_INLINE inline __attribute__((always_inline))
#define HETRUN_INLINE_LAMBDA __attribute__((always_inline))

// f(0), f(1), ... f(N - 1), each with its number as a type: loops that must be unrolled.
template <class F, size_t... I>
HETRUN_INLINE void unrolled_over(F&& f, std::index_sequence<I...>) {
    (f(std::integral_constant<int, static_cast<int>(I)>{}), ...);
}
template <size_t N, class F>
HETRUN_INLINE void unrolled(F&& f) {
    unrolled_over(f, std::make_index_sequence<N>{});
}

inline Vf splat(float x) { return x - Vf{}; }  // Vf{} + x would turn -0 into 0, which costs an addition
inline Vi splat_int(int32_t x) { return Vi{} + x; }
inline Vf as_floats(Vi v) { return reinterpret_cast<Vf>(v); }
inline Vi as_ints(Vf v) { return reinterpret_cast<Vi>(v); }

inline Vf load_floats(const float* p) {
    Vf v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline void store_floats(float* p, Vf v) { std::memcpy(p, &v, sizeof v); }

inline Vi load_ints(const void* p) {
    Vi v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline void store_ints(void* p, Vi v) { std::memcpy(p, &v, sizeof v); }
inline Vf to_floats(Vi v) { return __builtin_convertvector(v, Vf); }
inline Vi splat_word(const void* p) {
    int32_t word;
    std::memcpy(&word, p, 4);
    return splat_int(word);
}
#ifndef HETRUN_VECTOR_HALF
inline Vf load_half(const uint8_t* p) {
    typedef uint16_t Vu16 __attribute__((vector_size(2 * kLanes)));
    Vu16 h;
    std::memcpy(&h, p, sizeof h);
    const Vi all = __builtin_convertvector(h, Vi), magnitude = (all & 0x7fff) << 13, sign = (all & 0x8000) << 16;
    // Subnormals by the subtraction of their hidden bit: arithmetic on them might flush them to zero.
    const Vf small = as_floats(magnitude + 0x38800000) - splat(0x1p-14f);
    const Vi large = magnitude + (magnitude >= 0x0f800000 ? splat_int(0x70000000) : splat_int(0x38000000));
    return as_floats((magnitude < 0x00800000 ? as_ints(small) : large) | sign);
}
#endif
inline Vi lanes() {  // 0, 1, 2, ...
    Vi v{};
    for (size_t i = 0; i < kLanes; ++i) v[i] = static_cast<int32_t>(i);
    return v;
}
// Memory is asked for this far ahead of its use: rows are too short for the hardware to foresee the next.
constexpr size_t kPrefetchBytes = 4096;
inline void prefetch(const uint8_t* from, size_t nbytes) {
    for (size_t i = 0; i < nbytes; i += 64) __builtin_prefetch(from + i);
}

inline Vf splat_at(const float* p) { return splat(*p); }

}  // namespace
}  // namespace hetrun::cpu
