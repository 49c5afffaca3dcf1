// Kernels for x86-64 with AVX2 and FMA: 16 registers of 32 bytes.
#include "kernels.hpp"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define NAMESPACE avx2
#define BYTES 32
#define NK_AT_ONCE 2
#include "target.hpp"

static bool here() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

const Target avx2_target = {"avx2", here, avx2::kernels<float>(), avx2::kernels<double>()};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
