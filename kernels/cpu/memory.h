// Zeroed memory straight from the system: pages that nobody touches cost nothing.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hetrun::cpu {

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
