#include "masters.h"

#include <queue>

#include "hbm.h"

namespace hetrun::u280 {

namespace {

constexpr uint32_t kChannels = 32;

// The links between a switch and its neighbour, one way: each carries a burst at a time.
class Lateral {
public:
    explicit Lateral(uint32_t links) : free_(links, 0) {}

    // A burst of so many bytes that is there at `at`: when it is across.
    int64_t cross(int64_t at, int64_t data_ps) {
        int64_t& link = *std::min_element(free_.begin(), free_.end());
        link = std::max(link, at) + data_ps;
        return link;
    }

private:
    std::vector<int64_t> free_;
};

struct Event {
    int64_t at;
    uint32_t master;
    bool operator>(const Event& other) const { return at != other.at ? at > other.at : master > other.master; }
};

}  // namespace

Rate read_rate(const MemoryTiming& memory, const Reads& reads) {
    std::vector<PseudoChannel> channels;
    for (uint32_t c = 0; c < kChannels; ++c) channels.emplace_back(memory, c, kChannels);
    const uint32_t n_switches = kChannels / memory.switch_channels;
    std::vector<Lateral> up(n_switches, Lateral(memory.lateral_links)), down = up;  // data that moves to higher masters, to lower ones

    std::vector<uint32_t> asked(reads.n_masters, 0);
    std::vector<int64_t> port_free(reads.n_masters, 0);
    std::priority_queue<Event, std::vector<Event>, std::greater<>> events;
    for (uint32_t m = 0; m < reads.n_masters; ++m)
        for (uint32_t i = 0; i < reads.outstanding; ++i) events.push({int64_t{i} * reads.clock_ps, m});
    int64_t end = 0, latency = 0;
    const int64_t data_ps = reads.burst_bytes * memory.byte_fs / 1000;
    while (!events.empty()) {
        const Event event = events.top();
        events.pop();
        if (asked[event.master] == reads.n_bursts) continue;
        const uint32_t c = (event.master + reads.shift) % kChannels;
        const uint32_t from = c / memory.switch_channels, to = event.master / memory.switch_channels;
        const int64_t hops = from > to ? from - to : to - from, way = (memory.hit_ps + hops * memory.hop_ps) / 2;
        int64_t at = channels[c].serve(event.at + way, asked[event.master]++ * reads.stride, reads.burst_bytes);
        // It streams through: over a link that is free, nothing but the way.
        for (uint32_t s = from; s != to; s = s < to ? s + 1 : s - 1) {
            Lateral& link = s < to ? up[s] : down[s - 1];
            at = std::max(at, link.cross(at - data_ps, data_ps));
        }
        const int64_t moved = (reads.burst_bytes + HETRUN_U280_BEAT_BYTES - 1) / HETRUN_U280_BEAT_BYTES * reads.clock_ps;
        at = port_free[event.master] = std::max(at + way, port_free[event.master] + moved);
        latency += at - event.at;
        end = std::max(end, at);
        events.push({at, event.master});
    }
    const double n = static_cast<double>(reads.n_masters) * reads.n_bursts;
    return {n * reads.burst_bytes / (static_cast<double>(end) * 1e-12), static_cast<double>(latency) * 1e-12 / n};
}

}  // namespace hetrun::u280
