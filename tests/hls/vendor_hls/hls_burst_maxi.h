// What of Vitis' hls_burst_maxi.h the engine uses: words come in the order in which they were asked for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <deque>

namespace hls {

template <class T>
class burst_maxi {
public:
    burst_maxi(const T* memory) : memory_(memory) {}
    void read_request(size_t offset, size_t n) {
        for (size_t i = 0; i < n; ++i) asked_.push_back(memory_ + offset + i);
    }
    T read() {
        if (asked_.empty()) std::abort();
        const T value = *asked_.front();
        asked_.pop_front();
        return value;
    }

private:
    const T* memory_;
    std::deque<const T*> asked_;
};

}  // namespace hls
