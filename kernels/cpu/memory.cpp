#include "memory.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

namespace hetrun::cpu {

#ifdef __SANITIZE_ADDRESS__
// From the heap, where AddressSanitizer sees a step beyond the end.
void* memory_create(uint64_t nbytes) {
    void* p = nullptr;
    if (nbytes > SIZE_MAX / 2 || posix_memalign(&p, 4096, static_cast<size_t>(nbytes)) != 0) return nullptr;
    return std::memset(p, 0, static_cast<size_t>(nbytes));
}

void memory_destroy(void* memory, uint64_t) { std::free(memory); }
#else
void* memory_create(uint64_t nbytes) {
    if (nbytes > SIZE_MAX / 2) return nullptr;
    const size_t size = nbytes == 0 ? 1 : static_cast<size_t>(nbytes);
    void* p = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? nullptr : p;
}

void memory_destroy(void* memory, uint64_t nbytes) {
    if (memory != nullptr) munmap(memory, nbytes == 0 ? 1 : static_cast<size_t>(nbytes));
}
#endif

}  // namespace hetrun::cpu
