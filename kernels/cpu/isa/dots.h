// Sums of N products of codes and activations, four a lane, as the instruction set holds them best. Bits: of the codes.
#pragma once

namespace hetrun::cpu {
namespace {

#ifndef HETRUN_NARROW_DOTS
template <int Bits, int N>
struct Dots {
    Vi sum;
    HETRUN_INLINE void begin(Vi start) { sum = start; }
    HETRUN_INLINE void add(Vi codes, Vi activations) { sum = dot<Bits>(sum, codes, activations); }
    HETRUN_INLINE Vi total() const { return sum; }
};
#endif

}  // namespace
}  // namespace hetrun::cpu
