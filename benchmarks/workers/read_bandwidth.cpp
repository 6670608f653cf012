// Reads a buffer of huge pages with n threads, once a line of stdin; answers bytes/s: what a decode step can hope for.
//   g++ -O3 -march=native -std=c++17 -pthread read_bandwidth.cpp && ./a.out N_THREADS MEGABYTES
#include <sys/mman.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

namespace {

typedef uint64_t Lane __attribute__((vector_size(64)));

constexpr int kStreams = 8;  // independent sums: none waits for the one before

// noinline and the result's use keep the compiler from dropping the loads.
__attribute__((noinline)) uint64_t sum(const Lane* data, size_t n) {
    Lane total[kStreams] = {};
    for (size_t i = 0; i + kStreams <= n; i += kStreams) {
        for (int k = 0; k < kStreams; ++k) {
            __builtin_prefetch(data + i + k + 64, 0, 2);  // 4 KB ahead, into the second-level cache: the fastest kind that was found
            total[k] += data[i + k];
        }
    }
    uint64_t result = 0;
    for (const Lane& lane : total)
        for (int k = 0; k < 8; ++k) result += lane[k];
    return result;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) return 2;
    const int n_threads = std::atoi(argv[1]);
    constexpr size_t kHuge = size_t{2} << 20;
    const size_t part = (static_cast<size_t>(std::atoi(argv[2])) << 20) / n_threads / kHuge * kHuge;
    const size_t nbytes = part * n_threads;
    void* raw = mmap(nullptr, nbytes + kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED) return 1;
    char* data = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(raw) + kHuge - 1) / kHuge * kHuge);
    madvise(data, nbytes, MADV_HUGEPAGE);
    std::memset(data, 1, nbytes);
    char line[64];
    uint64_t used = 0;
    while (std::fgets(line, sizeof line, stdin) != nullptr) {
        std::atomic<int> ready{0};
        std::atomic<bool> go{false};
        std::vector<uint64_t> sums(n_threads);
        std::vector<std::thread> threads;
        constexpr int kPasses = 4;
        for (int t = 0; t < n_threads; ++t)
            threads.emplace_back([&, t] {
                ready.fetch_add(1);
                while (!go.load()) {}
                for (int pass = 0; pass < kPasses; ++pass)
                    sums[t] += sum(reinterpret_cast<const Lane*>(data + t * part), part / sizeof(Lane));
            });
        while (ready.load() < n_threads) {}
        const auto started = std::chrono::steady_clock::now();
        go.store(true);
        for (std::thread& thread : threads) thread.join();
        const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - started;
        for (const uint64_t s : sums) used += s;
        std::printf("%.0f\n", static_cast<double>(nbytes) * kPasses / elapsed.count());
        std::fflush(stdout);
    }
    return used == 1 ? 3 : 0;
}
