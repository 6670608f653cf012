// What of Vitis' hls_stream.h the engine uses; processes run one after the other, so that a stream holds what it must.
#pragma once

#include <cstdlib>
#include <deque>

namespace hls {

template <class T, int Depth>
class stream {
public:
    explicit stream(const char*) {}
    stream(const stream&) = delete;
    ~stream() {
        if (!values_.empty()) std::abort();
    }
    void write(const T& value) { values_.push_back(value); }
    T read() {
        if (values_.empty()) std::abort();
        const T value = values_.front();
        values_.pop_front();
        return value;
    }
    bool read_nb(T& value) {
        value = read();
        return true;
    }

private:
    std::deque<T> values_;
};

}  // namespace hls
