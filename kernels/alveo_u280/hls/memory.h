// The vector memory, in words of 64 floats, and floats of the DDR.
//
// A row is 32 banks of float pairs side by side, each a URAM of two ports with a write enable for each pair: a cycle has two accesses to
// words, whole or in part. Values begin at whole words; what a word holds beyond a value's end is anything.
#pragma once

#include "fabric/pipeline.h"
#include "flow.h"

namespace hetrun::u280 {

constexpr uint32_t kWide = 64;  // floats of a word

struct Pair {
    float x[2];
};
struct Word {
    float x[kWide];
};
template <uint32_t Floats>
using PairsOf = Pair[Floats / kWide][kWide / 2];
using MemoryRow = PairsOf<HETRUN_U280_VECTOR_FLOATS>;
using Constants = PairsOf<kMaxColumns>;  // what an instruction reads from the DDR beside its rows

inline Word load_word(const Pair (*row)[kWide / 2], uint32_t word) {
#pragma HLS INLINE
    Word out;
    for (uint32_t k = 0; k < kWide; ++k) {
#pragma HLS UNROLL
        out.x[k] = row[word][k / 2].x[k % 2];
    }
    return out;
}
inline void store_word(Pair (*row)[kWide / 2], uint32_t word, const Word& value) {
#pragma HLS INLINE
    for (uint32_t k = 0; k < kWide; ++k) {
#pragma HLS UNROLL
        row[word][k / 2].x[k % 2] = value.x[k];
    }
}

// Floats that a walk over a group of n floats (a head, mostly), of which others follow, takes at once: words where groups are such, else
// what never crosses one.
constexpr uint32_t step_of(uint32_t n) { return n % kWide == 0 ? kWide : n % kFloats == 0 ? kFloats : 2; }

// `step` floats from `first` on, and zeros.
inline Word load_step(const Pair (*row)[kWide / 2], uint32_t first, uint32_t step) {
#pragma HLS INLINE
    const Word word = load_word(row, first / kWide);
    if (step == kWide) return word;
    const uint32_t at = first % kWide;
    Word out{};
    for (uint32_t k = 0; k < kFloats; ++k) {
#pragma HLS UNROLL
        const float pair = word.x[at / 2 * 2 + k % 2];
        out.x[k] = step == kFloats ? word.x[at / kFloats * kFloats + k] : k < 2 ? pair : 0.0f;
    }
    return out;
}
inline void store_step(Pair (*row)[kWide / 2], uint32_t first, uint32_t step, const Word& value) {
#pragma HLS INLINE
    if (step == kWide) return store_word(row, first / kWide, value);
    const uint32_t at = first % kWide;
    for (uint32_t k = 0; k < kWide; ++k) {
#pragma HLS UNROLL
        if (k >= at && k < at + step) row[first / kWide][k / 2].x[k % 2] = value.x[step == kFloats ? k % kFloats : k % 2];
    }
}

// Floats 16 i to 16 i + 15 of a word, at its beginning.
inline Word quarter_of(const Word& word, uint32_t i) {
#pragma HLS INLINE
    Word out{};
    for (uint32_t k = 0; k < kFloats; ++k) {
#pragma HLS UNROLL
        out.x[k] = word.x[i * kFloats + k];
    }
    return out;
}

// Floats of the DDR, from any of them on, a beat an iteration.
inline void read_floats(const Beat* ddr, uint64_t first, uint32_t n, Pair (*out)[kWide / 2]) {
    const uint32_t at = static_cast<uint32_t>(first % kFloats), n_beats = divided(n, kFloats);
    const uint64_t from = first / kFloats, last = n == 0 ? from : (first + n - 1) / kFloats;
    Beat held{};
    if (at != 0 && n != 0) held = ddr[from];
    for (uint32_t b = 0; b < n_beats; ++b) {
        HETRUN_FABRIC_PIPELINE(1);
        const uint64_t next = from + b + (at == 0 ? 0 : 1);
        const Beat beat = next <= last ? ddr[next] : Beat{};
        Word floats{};
        for (uint32_t k = 0; k < kFloats; ++k) {
#pragma HLS UNROLL
            floats.x[k] = at == 0 ? float_of(beat, k) : at + k < kFloats ? float_of(held, at + k) : float_of(beat, at + k - kFloats);
        }
        store_step(out, b * kFloats, kFloats, floats);
        held = beat;
    }
}

// Beats that are not all of the row are read, since others have the rest of them.   x(i): floats 16 i to 16 i + 15, at the beginning of a word.
template <class Floats>
void write_floats(Beat* ddr, uint64_t first, uint32_t n, Floats x) {
    if (n == 0) return;
    const uint32_t at = static_cast<uint32_t>(first % kFloats), end = static_cast<uint32_t>((first + n) % kFloats);
    const uint32_t n_beats = divided(at + n, kFloats);
    const uint64_t from = first / kFloats;
    Beat begun{}, ended{};
    if (at != 0) begun = ddr[from];
    if (end != 0) ended = ddr[from + n_beats - 1];
    Word held{};
    for (uint32_t b = 0; b < n_beats; ++b) {
        HETRUN_FABRIC_PIPELINE(1);
        const Word floats = b * kFloats < n ? x(b) : Word{};
        Beat beat{};
        for (uint32_t k = 0; k < kFloats; ++k) {
#pragma HLS UNROLL
            const uint32_t i = b * kFloats + k;  // floats from the first beat's first on
            const float value = k >= at ? floats.x[k - at] : held.x[k + kFloats - at];
            set_float(beat, k, i < at ? float_of(begun, k) : i < at + n ? value : float_of(ended, k));
        }
        ddr[from + b] = beat;
        held = floats;
    }
}

}  // namespace hetrun::u280
