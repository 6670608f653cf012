#include "pool.h"

#include <csignal>
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <chrono>

namespace hetrun::cpu {

namespace {
// Long enough to span the host's work between two tokens, short enough not to warm an idle machine.
constexpr std::chrono::microseconds kSpin{1000};
// A barrier inside a run comes within microseconds, unless a thread has lost its core to another program. Sleeping then
// lets the system move that thread to this core; yielding in a loop would not.
constexpr int kBarrierSpins = 5000;
constexpr size_t kLinesASpin = 2;
// Runs done alone double each time in a row that workers have cost more time than they gave, up to these.
constexpr uint32_t kMaxAloneRuns = 256;
// The system moves threads within a run of this length, and a wrong verdict would cost as many long ones: a prompt is never
// left to one thread.
constexpr std::chrono::milliseconds kLongRun{50};
}  // namespace

Pool::Pool(uint32_t n_threads) : n_threads_(n_threads), active_(n_threads) {
    // Signals belong to the program's own threads: Ctrl-C must not land on a worker.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
        for (uint32_t i = 1; i < n_threads; ++i) workers_.emplace_back([this, i] { work(i); });
    } catch (...) {
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
        stop();
        throw;
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

Pool::~Pool() { stop(); }

void Pool::stop() {
    stopping_.store(true);
    epoch_.fetch_add(1);
    wake_sleepers();
    for (std::thread& worker : workers_) worker.join();
}

void Pool::run(Job job, void* argument, Record& record) {
    active_ = record.alone_left > 0 ? 1 : n_threads_;
    if (record.alone_left > 0) --record.alone_left;
    if (active_ == 1) {
        job(argument, 0);
        return;
    }
    const auto begin = std::chrono::steady_clock::now();
    caller_cpu_.store(sched_getcpu(), std::memory_order_relaxed);
    waited_ = {};
    job_ = job;
    argument_ = argument;
    epoch_.fetch_add(1);
    wake_sleepers();
    job(argument, 0);
    barrier(0);
    judge(std::chrono::steady_clock::now() - begin, record);
}

// Where other programs hold the cores, n threads that wait for each other can be slower than one. This one did about 1 / n of
// the work, so they are when it has waited for more than (n - 1) / n of the run. One such run may be chance.
void Pool::judge(std::chrono::steady_clock::duration elapsed, Record& record) const {
    if (elapsed < kLongRun && waited_ * n_threads_ > elapsed * (n_threads_ - 1)) {
        if (record.doubted) {
            record.alone_left = record.next_alone;
            record.next_alone = std::min(record.next_alone * 2, kMaxAloneRuns);
        }
        record.doubted = true;
    } else {
        record = Record();
    }
}

// A thread that another one wakes tends to be put on the waker's core, and two threads that wait for each other on one core
// take ten times as long as one: so it moves itself to a core of its own. It is not bound to it.
void Pool::spread(uint32_t thread) const {
    cpu_set_t allowed, own;
    const int caller = caller_cpu_.load(std::memory_order_relaxed);
    if (caller < 0 || sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
    int cpu = caller;
    for (uint32_t steps = thread % static_cast<uint32_t>(CPU_COUNT(&allowed)); steps > 0; steps -= CPU_ISSET(cpu, &allowed) ? 1 : 0)
        cpu = (cpu + 1) % CPU_SETSIZE;
    if (cpu == caller || cpu == sched_getcpu()) return;
    CPU_ZERO(&own);
    CPU_SET(cpu, &own);
    if (sched_setaffinity(0, sizeof own, &own) == 0) sched_setaffinity(0, sizeof allowed, &allowed);
}

void Pool::wake_sleepers() {
    if (sleeping_.load() == 0) return;
    {
        std::lock_guard<std::mutex> lock(mutex_);
    }
    wake_.notify_all();
}

void Pool::work(uint32_t thread) {
    for (uint32_t seen = 0; wait_for_job(seen, thread); ++seen) {
        if (seen == 0) spread(thread);
        job_(argument_, thread);
        barrier(thread);
    }
}

bool Pool::wait_for_job(uint32_t seen, uint32_t thread) {
    const auto until = std::chrono::steady_clock::now() + kSpin;
    while (epoch_.load(std::memory_order_acquire) == seen) {
        for (int i = 0; i < 64 && epoch_.load(std::memory_order_relaxed) == seen; ++i) cpu_relax();
        if (std::chrono::steady_clock::now() > until) {
            std::unique_lock<std::mutex> lock(mutex_);
            sleeping_.fetch_add(1);
            wake_.wait(lock, [&] { return epoch_.load() != seen; });
            sleeping_.fetch_sub(1);
            lock.unlock();
            spread(thread);
        }
    }
    return !stopping_.load();
}

void Pool::barrier(uint32_t thread, Ahead* ahead) {
    if (active_ == 1) return;
    const uint32_t passed = passed_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == n_threads_) {
        arrived_.store(0, std::memory_order_relaxed);
        // More than a store: QEMU lets the load of `sleeping_` pass an ARM store-release, though the two are sequentially
        // consistent, and whoever goes to sleep meanwhile is never woken.
        passed_.exchange(passed + 1);
        wake_sleepers();
        return;
    }
    const bool timed = thread == 0;
    const auto begin = timed ? std::chrono::steady_clock::now() : std::chrono::steady_clock::time_point{};
    wait_for_others(passed, thread, ahead);
    if (timed) waited_ += std::chrono::steady_clock::now() - begin;
}

void Pool::wait_for_others(uint32_t passed, uint32_t thread, Ahead* ahead) {
    for (int spins = 0; spins < kBarrierSpins; ++spins) {
        if (passed_.load(std::memory_order_acquire) != passed) return;
        if (ahead) ahead->fetch(kLinesASpin);
        cpu_relax();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    sleeping_.fetch_add(1);
    wake_.wait(lock, [&] { return passed_.load() != passed; });
    sleeping_.fetch_sub(1);
    lock.unlock();
    if (thread != 0) spread(thread);
}

}  // namespace hetrun::cpu
