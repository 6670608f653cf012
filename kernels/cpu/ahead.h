// Memory that a thread will read soon, asked for a few lines at a time while it waits for others or computes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hetrun::cpu {

class alignas(128) Ahead {
public:
    void clear() { n_ = next_ = 0; }
    // At most two spans, which are read in this order.
    void add(const uint8_t* from, size_t nbytes) { spans_[n_++] = {from, from + nbytes}; }

    // Into the second-level cache: what waits there takes no room from what is being worked on.
    void fetch(size_t n_lines) {
        for (; n_lines > 0 && next_ < n_; --n_lines) {
            Span& span = spans_[next_];
            __builtin_prefetch(span.at, 0, 2);
            span.at += 64;
            if (span.at >= span.end) ++next_;
        }
    }

    // nbytes of what is to be fetched, for who asks for them himself; null where fewer are left of a span.
    const uint8_t* take(size_t nbytes) {
        if (next_ == n_ || static_cast<size_t>(spans_[next_].end - spans_[next_].at) < nbytes) return nullptr;
        const uint8_t* from = spans_[next_].at;
        spans_[next_].at += nbytes;
        if (spans_[next_].at == spans_[next_].end) ++next_;
        return from;
    }

private:
    struct Span {
        const uint8_t *at, *end;
    };
    Span spans_[2] = {};
    size_t n_ = 0, next_ = 0;
};

}  // namespace hetrun::cpu
