// Instructions of a pass on their way out of fetch, a few at a time: so that a MATMUL knows of the next, of which the vector process tells
// the lanes while they still give the results of this one.
#pragma once

#include "flow.h"

namespace hetrun::u280 {

constexpr uint32_t kAhead = 8;  // reaches past the rotations that stand between two matrices of a decoder's layer

class Ahead {
public:
    // Calls emit(its two beats) for each instruction, in order, up to kAhead - 1 behind those taken.
    template <class Emit>
    void take(const Beat* beats, Emit emit) {
        waiting_[n_][0] = beats[0];
        waiting_[n_][1] = beats[1];
        ++n_;
        const bool ends = op_of(n_ - 1) == HETRUN_U280_OP_END;
        while (n_ == kAhead || (ends && n_ != 0)) {
            name_next();
            Beat first[2] = {waiting_[0][0], waiting_[0][1]};
            for (uint32_t i = 1; i < kAhead; ++i) {
#pragma HLS UNROLL
                for (uint32_t k = 0; k < 2; ++k) waiting_[i - 1][k] = waiting_[i][k];
            }
            --n_;
            emit(first);
        }
    }

private:
    static constexpr uint32_t kFormatWord = 3, kRowsWord = 9, kNextRowsWord = 27, kNextFormatWord = 28;

    uint32_t op_of(uint32_t i) const { return word_of(waiting_[i][0], 0); }
    void name_next() {
        uint32_t format = 0, n_rows = 0;
        bool looks = op_of(0) == HETRUN_U280_OP_MATMUL;
        for (uint32_t i = 1; i < kAhead; ++i) {
#pragma HLS UNROLL
            const uint32_t op = i < n_ ? op_of(i) : HETRUN_U280_OP_END;
            if (looks && op == HETRUN_U280_OP_MATMUL) {
                format = word_of(waiting_[i][0], kFormatWord);
                n_rows = word_of(waiting_[i][0], kRowsWord);
            }
            // Behind what the lanes hear of no MATMUL may go before.
            looks = looks && op != HETRUN_U280_OP_MATMUL && op != HETRUN_U280_OP_EMBED && op != HETRUN_U280_OP_QUANTIZE &&
                    op != HETRUN_U280_OP_ATTEND && op != HETRUN_U280_OP_END;
        }
        set_word(waiting_[0][1], kNextRowsWord - kFloats, n_rows);
        set_word(waiting_[0][1], kNextFormatWord - kFloats, format);
    }

    Beat waiting_[kAhead][2];
    uint32_t n_ = 0;
};

}  // namespace hetrun::u280
