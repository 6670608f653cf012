// Zeroed memory straight from the system: pages that nobody touches cost nothing.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace hetrun::cpu {

// Bytes between the parts of a block of memory that nobody may touch, where AddressSanitizer watches; none elsewhere.
#ifdef __SANITIZE_ADDRESS__
constexpr size_t kRedzone = 64;
inline void forbid(const uint8_t* begin, const uint8_t* end) {
    __asan_poison_memory_region(begin, static_cast<size_t>(end - begin));
}
#else
constexpr size_t kRedzone = 0;
inline void forbid(const uint8_t*, const uint8_t*) {}
#endif

void* memory_create(uint64_t nbytes);  // null where there is none; aligned to a page
void memory_destroy(void* memory, uint64_t nbytes);

class Memory {
public:
    Memory() = default;
    ~Memory() { memory_destroy(data_, nbytes_); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;

    bool allocate(uint64_t nbytes) {
        data_ = static_cast<uint8_t*>(memory_create(nbytes));
        nbytes_ = nbytes;
        return data_ != nullptr;
    }
    uint8_t* data() const { return data_; }
    uint64_t nbytes() const { return nbytes_; }

private:
    uint8_t* data_ = nullptr;
    uint64_t nbytes_ = 0;
};

// a * b, or UINT64_MAX where that overflows.
inline uint64_t product(uint64_t a, uint64_t b) {
    uint64_t c;
    return __builtin_mul_overflow(a, b, &c) ? UINT64_MAX : c;
}

}  // namespace hetrun::cpu
