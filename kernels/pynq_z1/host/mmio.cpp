// Registers of a board, mapped into this process: a launch reaches them without Python.
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
