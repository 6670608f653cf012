// Threads that help the one that asks: it takes jobs too, and waits for no helper that has not begun one.
#pragma once

#include <csignal>
#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace hetrun::fabric {

class Helpers {
public:
    using Job = void (*)(void* argument, uint32_t i);

    // As many as the system grants.
    explicit Helpers(uint32_t n) {
        // Signals belong to the program's own threads.
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        try {
            for (uint32_t i = 0; i < n; ++i) threads_.emplace_back([this] { help(); });
        } catch (const std::system_error&) {
        }
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
    }
    ~Helpers() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            ending_ = true;
        }
        asked_.notify_all();
        for (std::thread& thread : threads_) thread.join();
    }
    Helpers(const Helpers&) = delete;
    Helpers& operator=(const Helpers&) = delete;

    // Runs job(argument, i) for all i < n; returns when all have ended.
    void share(Job job, void* argument, uint32_t n) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            job_ = job;
            argument_ = argument;
            n_ = n;
            next_.store(0, std::memory_order_relaxed);
        }
        asked_.notify_all();
        take(job, argument, n);
        std::unique_lock<std::mutex> lock(mutex_);
        job_ = nullptr;
        ended_.wait(lock, [this] { return helping_ == 0; });
    }

private:
    void take(Job job, void* argument, uint32_t n) {
        for (uint32_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < n;) job(argument, i);
    }
    void help() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            asked_.wait(lock, [this] { return ending_ || (job_ != nullptr && next_.load(std::memory_order_relaxed) < n_); });
            if (ending_) return;
            ++helping_;
            const Job job = job_;
            void* const argument = argument_;
            const uint32_t n = n_;
            lock.unlock();
            take(job, argument, n);
            lock.lock();
            if (--helping_ == 0) ended_.notify_all();
        }
    }

    std::mutex mutex_;
    std::condition_variable asked_, ended_;
    Job job_ = nullptr;
    void* argument_ = nullptr;
    uint32_t n_ = 0, helping_ = 0;
    std::atomic<uint32_t> next_{0};
    bool ending_ = false;
    std::vector<std::thread> threads_;
};

}  // namespace hetrun::fabric
