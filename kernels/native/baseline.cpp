// Kernels for any machine the compiler aims at: 16-byte registers (SSE2 of x86-64, NEON of aarch64).
#include "kernels.hpp"

#define NAMESPACE baseline
#define BYTES 16
#define NK_AT_ONCE 2
#include "target.hpp"

static bool here() { return true; }

const Target baseline_target = {"baseline", here, baseline::kernels<float>(), baseline::kernels<double>()};
