// Threads that stay: they spin for about a millisecond after a run, then sleep until the next one. Where other programs
// hold the cores, or there is too little to share, a job stays on the caller's thread alone for a while.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "ahead.h"

namespace hetrun::cpu {

inline void cpu_relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
    asm volatile("yield" ::: "memory");
#endif
}

class Pool {
public:
    using Job = void (*)(void* argument, uint32_t thread);

    // Throws std::system_error where the system refuses a thread.
    explicit Pool(uint32_t n_threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    uint32_t size() const { return n_threads_; }

    // Threads that share the run going on: size() or 1.
    uint32_t active() const { return active_; }

    // What a job has shown to be worth: whoever runs it again and again keeps this.
    struct Record {
        uint32_t next_alone = 8;  // runs on the caller's thread alone that the next bad run leads to
        uint32_t alone_left = 0;
        bool doubted = false;  // the last run with workers was a bad one
    };

    // Runs job(argument, i) for i < active() at the same time, 0 on the caller's thread; returns when all have ended.
    void run(Job job, void* argument, Record& record);

    // Inside a job: no thread leaves before all have come. Who waits asks for what lies `ahead`.
    void barrier(uint32_t thread, Ahead* ahead = nullptr);

private:
    void work(uint32_t thread);
    bool wait_for_job(uint32_t seen, uint32_t thread);
    void spread(uint32_t thread) const;
    void stop();
    void wake_sleepers();
    void wait_for_others(uint32_t passed, uint32_t thread, Ahead* ahead);
    void judge(std::chrono::steady_clock::duration elapsed, Record& record) const;

    // The flags that all threads poll stand on cache lines of their own: 128 covers pairs fetched together.
    alignas(128) std::atomic<uint32_t> arrived_{0};
    alignas(128) std::atomic<uint32_t> passed_{0};
    alignas(128) std::atomic<uint32_t> epoch_{0};
    alignas(128) std::atomic<uint32_t> sleeping_{0};
    std::atomic<bool> stopping_{false};
    std::mutex mutex_;
    std::condition_variable wake_;
    Job job_ = nullptr;
    void* argument_ = nullptr;
    const uint32_t n_threads_;
    uint32_t active_;
    std::atomic<int> caller_cpu_{0};
    std::chrono::steady_clock::duration waited_{};  // by the caller's thread, in this run
    std::vector<std::thread> workers_;
};

}  // namespace hetrun::cpu
