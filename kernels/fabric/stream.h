// hls::stream and dataflow regions on a host.
//
// Plain: each process of a region runs to its end before the next, and streams grow as they must.
// HETRUN_FABRIC_BOUNDED: a thread a process and streams of the depth they are given; a deadlock ends the program with
// kDeadlock and the names of the streams.
#pragma once

#ifdef __SYNTHESIS__

#include <hls_stream.h>
// The caller's body is then a dataflow region.
#define HETRUN_FABRIC_DATAFLOW(a, b, c, d, e, f, g) \
    _Pragma("HLS DATAFLOW") a;                     \
    b;                                             \
    c;                                             \
    d;                                             \
    e;                                             \
    f;                                             \
    g;

#else

// The processes of a dataflow region, in the order of their data.
#define HETRUN_FABRIC_DATAFLOW(a, b, c, d, e, f, g) \
    hls::dataflow([&] { a; }, [&] { b; }, [&] { c; }, [&] { d; }, [&] { e; }, [&] { f; }, [&] { g; });

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#ifdef HETRUN_FABRIC_BOUNDED
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>
#endif

namespace hls {

#ifdef HETRUN_FABRIC_BOUNDED
constexpr int kDeadlock = 42;

// One lock for all streams: a deadlock is when every process that still runs waits.
struct Region {
    std::mutex mutex;
    std::condition_variable changed;
    int running = 0;
    unsigned long changes = 0;
    std::vector<std::pair<const char*, const char*>> waits;  // what for, and the stream, since the last change

    static Region& get() {
        static Region region;
        return region;
    }
    void note() {
        ++changes;
        waits.clear();
        changed.notify_all();
    }
    template <class Ready>
    void await(std::unique_lock<std::mutex>& lock, Ready ready, const char* stream, const char* what) {
        while (!ready()) {
            waits.emplace_back(what, stream);
            if (static_cast<int>(waits.size()) == running) {
                std::fprintf(stderr, "deadlock: all processes wait\n");
                for (const auto& wait : waits) std::fprintf(stderr, "  to %s stream %s\n", wait.first, wait.second);
                std::_Exit(kDeadlock);
            }
            const unsigned long seen = changes;
            changed.wait(lock, [&] { return changes != seen; });
        }
    }
};
#endif

template <class T, int Depth>
class stream {
public:
    explicit stream(const char* name) : name_(name) {}
    stream(const stream&) = delete;
    stream& operator=(const stream&) = delete;
    ~stream() {
        if (size() != 0) {
            std::fprintf(stderr, "stream %s: %zu values were never read\n", name_, size());
            std::abort();
        }
        delete[] values_;
    }

#ifdef HETRUN_FABRIC_BOUNDED
    void write(const T& value) {
        Region& region = Region::get();
        std::unique_lock<std::mutex> lock(region.mutex);
        region.await(lock, [&] { return size() < depth(); }, name_, "write to");
        push(value);
        region.note();
    }
    T read() {
        Region& region = Region::get();
        std::unique_lock<std::mutex> lock(region.mutex);
        region.await(lock, [&] { return size() != 0; }, name_, "read from");
        const T value = pop();
        region.note();
        return value;
    }
    // HETRUN_FABRIC_DEPTH_<NAME> in the environment overrides the depth: what is the least that works?
    size_t depth() {
        if (depth_ == 0) {
            char variable[64];
            std::snprintf(variable, sizeof variable, "HETRUN_FABRIC_DEPTH_%s", name_);
            const char* given = std::getenv(variable);
            depth_ = given ? static_cast<size_t>(std::atoi(given)) : static_cast<size_t>(Depth);
        }
        return depth_;
    }
#else
    void write(const T& value) { push(value); }
    T read() {
        if (size() == 0) {
            std::fprintf(stderr, "stream %s is read while empty\n", name_);
            std::abort();
        }
        return pop();
    }
#endif
    bool read_nb(T& value) {  // a host has no cycles in which nothing comes
        value = read();
        return true;
    }

private:
    size_t size() const { return end_ - head_; }
    void push(const T& value) {
        if (end_ == capacity_) grow();
        values_[end_++] = value;
    }
    T pop() {
        const T value = values_[head_++];
        if (head_ == end_) head_ = end_ = 0;
        return value;
    }
    void grow() {
        capacity_ = 4 * capacity_ + 64;
        T* values = new T[capacity_];
        for (size_t i = head_; i < end_; ++i) values[i] = values_[i];
        delete[] values_;
        values_ = values;
    }

    const char* name_;
    T* values_ = nullptr;
    size_t head_ = 0, end_ = 0, capacity_ = 0;
#ifdef HETRUN_FABRIC_BOUNDED
    size_t depth_ = 0;
#endif
};

#ifdef HETRUN_FABRIC_BOUNDED
inline void dataflow(const std::vector<std::function<void()>>& processes) {
    Region& region = Region::get();
    region.running = static_cast<int>(processes.size());
    region.waits.clear();
    std::vector<std::thread> threads;
    for (const auto& process : processes) {
        threads.emplace_back([&region, &process] {
            process();
            std::lock_guard<std::mutex> lock(region.mutex);
            --region.running;
            region.note();
        });
    }
    for (std::thread& thread : threads) thread.join();
}
#endif

template <class... Process>
void dataflow(Process... process) {
#ifdef HETRUN_FABRIC_BOUNDED
    dataflow(std::vector<std::function<void()>>{process...});
#else
    (process(), ...);
#endif
}

}  // namespace hls

#endif
