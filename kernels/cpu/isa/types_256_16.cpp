// Super-blocks of 256 with scales of 16.
#include "types.h"

namespace hetrun::cpu {

HETRUN_PACKED_CODES(Q2_K)
HETRUN_PACKED_CODES(Q3_K)
HETRUN_PACKED_CODES(Q6_K)

}  // namespace hetrun::cpu
