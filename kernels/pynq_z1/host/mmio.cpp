// What is mapped into this process of a board: registers, which a launch reaches without Python, and uncached memory.
#include "hetrun_pynq_z1.h"

namespace {

volatile uint32_t* word(void* registers, uint32_t offset) { return static_cast<volatile uint32_t*>(registers) + offset / 4; }

// Descriptors and activations are in memory before the register that starts the engine is written, and results are read
// after the one that says it is done.
void barrier() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

}  // namespace

uint32_t hetrun_pynq_mmio_read(void* registers, uint32_t offset) {
    const uint32_t value = *word(registers, offset);
    barrier();
    return value;
}

void hetrun_pynq_mmio_write(void* registers, uint32_t offset, uint32_t value) {
    barrier();
    *word(registers, offset) = value;
}

int32_t hetrun_pynq_copy_uncached(uint8_t* target, const uint8_t* source, uint64_t nbytes) {
    volatile uint64_t* to = reinterpret_cast<volatile uint64_t*>(target);
    const uint64_t* from = reinterpret_cast<const uint64_t*>(source);
    const uint64_t n = nbytes / 8;
    for (uint64_t i = 0; i < n; ++i) to[i] = from[i];
    barrier();
    // A read of what was written last comes back when the writes before it have left the processor's buffers.
    return n == 0 || to[n - 1] == from[n - 1];
}
