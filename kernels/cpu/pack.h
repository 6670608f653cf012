// Weights as the packed kernels read them ("L16"): groups of 16 rows, block after block of the 16, with the bytes that GGUF
// has. Within a block each field of the 16 rows stands together: halves and single bytes row by row, codes as 32-bit lanes,
// lane r of a vector being four consecutive codes (in the bits that GGUF gives them) of row r. So scales are loaded as
// vectors, and a dot product of four codes and a broadcast of four activations serves 16 rows.
//
// Fields in order: d, dmin or m | scales | high bits | codes. Changed from GGUF: codes of Q8_0 have 128 added; the high bits of
// Q5_0 and Q5_1 stand so that bit j of byte c of a lane is that of code 4j + c; scales of Q2_K and Q3_K stand in pairs. Codes of
// Q3_K and Q6_K are whole, as far as they fit, so that unpacking is a mask: three words hold the codes of the same four columns of
// eight sub-blocks of Q3_K (0 1 6h | 2 3 7h | 4 5 6l 7l, from the lowest bit on) or four of Q6_K (0 3l | 1 3m | 2 3h).
//
// W2S24 becomes W2: a weight that was pruned has the code of its group's zero point, so that 2 bits say all, and a mask
// unpacks what would else take two table lookups and a shuffle for each four weights. That is 18 bytes a group instead of 16.
// A byte of the codes holds columns 16 apart, so that four columns of each quarter share a word. Behind its blocks a group
// has the scales of its 16 rows. TQ1_0 becomes TQ2_0 alike, 66 bytes instead of 54: its digits in base 3 take longer to compute than
// memory takes to bring them in 2 bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "hetrun_cpu.h"
#include "kernels.h"
#include "memory.h"
#include "pool.h"

namespace hetrun::cpu {

constexpr size_t kGroup = 16;

// Bytes of a group of rows, or 0 where a type has no packed form.
size_t packed_group_bytes(uint32_t type, size_t n_columns);

// Packed weights of one call, in one block of memory.
class Pack {
public:
    // Fills in `packed` of each weight that has kernels for its packed form, 0 for the others. Returns a hetrun_status.
    int build(const Kernels& kernels, Pool& pool, hetrun_weight* weights, size_t n);

private:
    struct Job {
        const hetrun_weight* weight;
        size_t group_bytes, row_bytes;
        bool release;
    };

    static void entry(void* self, uint32_t thread);
    void work(uint32_t thread) const;

    Memory memory_;
    std::vector<Job> jobs_;
    std::vector<uint8_t> zeros_;  // a row beyond the last
    const Pool* pool_ = nullptr;
};

}  // namespace hetrun::cpu
