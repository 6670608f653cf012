// Sums of equal products in one cascade of the array's multipliers, for tests of how many keep their fields apart.
#include "../../kernels/alveo_u280/hls/multiply.h"

using namespace hetrun::u280;

namespace {

Sum summed(Int<27> a, Int<18> b, int n) {
    Sum sum = 0;
    for (int i = 0; i < n; ++i) sum += product(a, b);
    return sum;
}

}  // namespace

// The sums of two tokens.
extern "C" void cascade_of_tokens(int x0, int x1, int w, int n, int32_t* sums) {
    const Sum sum = summed(two_tokens(x0, x1), w, n);
    sums[0] = field<0, 18>(sum);
    sums[1] = field<18, 30>(sum);
}

// The middle of the cross form.
extern "C" int32_t cascade_of_crosses(int x0, int x1, int w0, int w1, int n) {
    return field<15, 15>(summed(cross_codes(x0, x1), cross_weights(w0, w1), n));
}
