// What of Vitis' hls_stream.h the engines use. Processes of a kernel run one after the other, so that a stream holds what it must; kernels
// run beside one another, so that a read waits. What nobody writes within a minute ends the program.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <mutex>

namespace hls {

template <class T, int Depth>
class stream {
public:
    stream() = default;
    explicit stream(const char*) {}
    stream(const stream&) = delete;
    ~stream() {
        if (!values_.empty()) std::abort();
    }
    void write(const T& value) {
        std::lock_guard<std::mutex> lock(mutex_);
        values_.push_back(value);
        written_.notify_one();
    }
    T read() {
        std::unique_lock<std::mutex> lock(mutex_);
        if (!written_.wait_for(lock, std::chrono::minutes(1), [this] { return !values_.empty(); })) std::abort();
        const T value = values_.front();
        values_.pop_front();
        return value;
    }
    bool read_nb(T& value) {
        value = read();
        return true;
    }

private:
    std::mutex mutex_;
    std::condition_variable written_;
    std::deque<T> values_;
};

}  // namespace hls
