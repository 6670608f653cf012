#include "memory.h"

#include <sys/mman.h>

namespace hetrun::cpu {

void* memory_create(uint64_t nbytes) {
    if (nbytes > SIZE_MAX / 2) return nullptr;
    const size_t size = nbytes == 0 ? 1 : static_cast<size_t>(nbytes);
    void* p = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? nullptr : p;
}

void memory_destroy(void* memory, uint64_t nbytes) {
    if (memory != nullptr) munmap(memory, nbytes == 0 ? 1 : static_cast<size_t>(nbytes));
}

}  // namespace hetrun::cpu
