// From scores to weights: the online softmax of one query.
#pragma once

namespace hetrun::cpu {
namespace {

inline float lane_max(Vf v) {
    for (int step = static_cast<int>(kLanes) / 2; step > 0; step /= 2) {
        Vi other{};
        for (int i = 0; i < static_cast<int>(kLanes); ++i) other[i] = i ^ step;
        const Vf moved = __builtin_shuffle(v, other);
        v = moved > v ? moved : v;
    }
    return v[0];
}

// exp of what is not positive, to about 2 ulp; of 0 it is 1, and a NaN stays one.
inline Vf decay(Vf x) {
    const Vf low = broadcast(-87.0f);
    const Vf bounded = x < low ? low : x;
    const Vf shifted = fmadd(bounded, broadcast(1.44269504f), broadcast(kRound));
    const Vf k = shifted - broadcast(kRound);
    const Vf r = fmadd(k, broadcast(-1.42860677e-6f), fmadd(k, broadcast(-0.693145752f), bounded));
    Vf p = fmadd(r, broadcast(1.0f / 720.0f), broadcast(1.0f / 120.0f));
    p = fmadd(p, r, broadcast(1.0f / 24.0f));
    p = fmadd(p, r, broadcast(1.0f / 6.0f));
    p = fmadd(p, r, broadcast(0.5f));
    p = fmadd(p, r, broadcast(1.0f));
    p = fmadd(p, r, broadcast(1.0f));
    const Vf result = p * as_floats((as_ints(shifted) - splat_int(0x4b400000 - 127)) << 23);
    return x < low ? Vf{} : result;
}
// To the 11 significant bits of a half, with the range of a float.
inline Vf rounded_halves(Vf x) {
    const Vi bits = as_ints(x);
    const Vf rounded = as_floats((bits + 0xfff + (bits >> 13 & 1)) & ~0x1fff);
    return x == x ? rounded : x;
}

inline float decay_of(float x) { return decay(broadcast(x))[0]; }

inline void scale_row(float* row, size_t n, float factor) {
    for (size_t i = 0; i < n; i += kLanes) store_floats(row + i, load_floats(row + i) * broadcast(factor));
}

// Scores of one query and `count` cells from `first` on -> their probabilities by the largest score so far. The sums of the
// query shrink by as much as that has grown, and the probabilities are added to their total, lane by lane.
inline void weigh_scores(const AttendArgs& a, const CellSpan& span, size_t first, size_t count, float* scores, float* sums,
                         size_t sum_stride, float& largest) {
    const size_t until = first + count;
    const bool whole = (first >= span.begin_low && until <= span.end_low) || (first >= span.begin_high && until <= span.end_high);
    Vf top = broadcast(largest);
    Vi lane = {};
    for (size_t i = 0; i < kLanes; ++i) lane[i] = static_cast<int32_t>(i);
    for (size_t i = 0; i < count; i += kLanes) {
        Vf s = load_floats(scores + i) * broadcast(a.scale);
        if (a.soft_cap != 0.0f) s = broadcast(a.soft_cap) * hyperbolic_tangent(s / broadcast(a.soft_cap));
        if (!whole) {
            const Vi cell = lane + static_cast<int32_t>(first + i);
            const Vi seen = ((cell >= static_cast<int32_t>(span.begin_low)) & (cell < static_cast<int32_t>(span.end_low))) |
                            ((cell >= static_cast<int32_t>(span.begin_high)) & (cell < static_cast<int32_t>(span.end_high)));
            s = seen ? s : broadcast(-__builtin_inff());
        }
        store_floats(scores + i, s);
        top = s > top ? s : top;
    }
    const float now = lane_max(top);
    if (now != largest) {
        scale_row(sums, sum_stride, decay_of(largest - now));
        largest = now;
    }
    Vf total = load_floats(sums + sum_stride - kKeyGroup);
    for (size_t i = 0; i < count; i += kLanes) {
        const Vf p = decay(load_floats(scores + i) - broadcast(now));
        total += p;
        store_floats(scores + i, p);
    }
    store_floats(sums + sum_stride - kKeyGroup, total);
}

inline bool sees(const CellSpan& span, size_t cell) {
    return (cell >= span.begin_low && cell < span.end_low) || (cell >= span.begin_high && cell < span.end_high);
}

inline bool sees_any(const CellSpan& span, size_t begin, size_t end) {
    return (end > span.begin_low && begin < span.end_low) || (end > span.begin_high && begin < span.end_high);
}

inline bool all_finite(const float* x, size_t n) {
    Vf poison = {};
    for (size_t i = 0; i < n; i += kLanes) poison = fmadd(load_floats(x + i), Vf{}, poison);
    return lane_sum(poison) == 0.0f;
}

}  // namespace
}  // namespace hetrun::cpu
