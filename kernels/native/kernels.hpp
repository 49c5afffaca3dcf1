// What every target offers, for one number type, and the loop over items that runs it on threads.
#ifndef TSGDN2_NATIVE_KERNELS_HPP
#define TSGDN2_NATIVE_KERNELS_HPP

#include "abi.h"

// What one thread takes at a time: columns [from, to) of V of some heads of one sequence.
struct Item {
    int64_t sequence, head, heads, part, from, to;
};

// Tokens of the whole tensor.
static inline int64_t tokens_of(const tsgdn2_scan &x) { return (x.offsets ? 1 : x.sequences) * x.tokens; }

struct Kernels {
    int64_t (*forward_bytes)(int64_t heads, int64_t keys, int64_t values);  // of scratch memory for one thread
    int64_t (*backward_bytes)(int64_t heads, int64_t keys, int64_t values);
    void (*forward)(const tsgdn2_scan &, const Item &, char *scratch);
    void (*backward)(const tsgdn2_scan &, const Item &, char *scratch);
    void (*step)(const tsgdn2_step &, int64_t begin, int64_t end, char *scratch);
};

struct Target {
    const char *name;
    bool (*here)();  // whether this machine has the instructions
    Kernels single, twice;  // float, double
};

extern const Target baseline_target;
#if defined(__x86_64__)
extern const Target avx2_target, avx512_target;
#endif

typedef void (*Work)(const void *context, int64_t item, char *scratch);

// Runs every item once, on at most `threads` threads of torch's own pool. Each has `bytes` of scratch memory.
int run_items(int64_t items, int64_t threads, int64_t bytes, Work work, const void *context);

#endif
