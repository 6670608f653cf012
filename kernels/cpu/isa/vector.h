// What every instruction set does with its vectors Vf and Vi alike.
#pragma once

#include <cstring>

namespace hetrun::cpu {
namespace {

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
inline Vf splat_at(const float* p) { return splat(*p); }

}  // namespace
}  // namespace hetrun::cpu
