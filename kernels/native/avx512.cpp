// Kernels for x86-64 with AVX-512: 32 registers of 64 bytes.
#include "kernels.hpp"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512vl,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512vl,fma")
#endif

#define NAMESPACE avx512
#define BYTES 64
#define NK_AT_ONCE 4
#include "target.hpp"

static bool here() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
}

const Target avx512_target = {"avx512", here, avx512::kernels<float>(), avx512::kernels<double>()};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
