// Sums of products of codes and activations, four a lane, as the instruction set holds them best. Long: of codes times
// scales, so that eight products of a lane may not fit 16 bits.
#pragma once

namespace hetrun::cpu {
namespace {

#ifndef HETRUN_NARROW_DOTS
template <bool Wide, bool Long = false>
struct Dots {
    Vi sum;
    HETRUN_INLINE void begin(Vi start) { sum = start; }
    HETRUN_INLINE void add(Vi codes, Vi activations) { sum = dot<Wide>(sum, codes, activations); }
    HETRUN_INLINE Vi total() const { return sum; }
};
#endif

}  // namespace
}  // namespace hetrun::cpu
