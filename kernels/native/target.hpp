// One instruction set's kernels: what baseline.cpp, avx2.cpp and avx512.cpp compile, and the table they hand out.
//
// The including file has set NAMESPACE, BYTES (of a register) and NK_AT_ONCE (vectors of keys held in registers by the
// backward: four sums and operands of each must fit beside the loads), and has turned the instruction set on.

namespace NAMESPACE {

constexpr int64_t PANEL_BYTES = 8192;  // of dS, and as much of S: a quarter of a 32 KiB cache each

#include "lanes.hpp"
#include "tokens.hpp"
#include "items.hpp"
#include "forward.hpp"
#include "turned.hpp"
#include "panels.hpp"
#include "backward.hpp"
#include "step.hpp"

template <class F> static int64_t forward_bytes(int64_t heads, int64_t keys, int64_t values) {
    Carver counter{nullptr, 0};
    const Forward<F> f(counter, heads, keys, values);
    (void)f;
    return counter.used;
}

template <class F> static int64_t backward_bytes(int64_t heads, int64_t keys, int64_t values) {
    Carver counter{nullptr, 0};
    const Backward<F> b(counter, heads, keys, values);
    (void)b;
    return counter.used;
}

template <class F> static constexpr Kernels kernels() {
    return {forward_bytes<F>, backward_bytes<F>, forward<F>, backward<F>, step<F>};
}

}  // namespace NAMESPACE
