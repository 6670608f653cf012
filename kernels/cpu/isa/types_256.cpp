// Super-blocks of 256 with scales of 32.
#include "types.h"

namespace hetrun::cpu {

HETRUN_PACKED_CODES(Q4_K)
HETRUN_PACKED_CODES(Q5_K)
HETRUN_PACKED_CODES(IQ4_XS)
HETRUN_PACKED_CODES(TQ1_0)
HETRUN_PACKED_CODES(TQ2_0)

}  // namespace hetrun::cpu
