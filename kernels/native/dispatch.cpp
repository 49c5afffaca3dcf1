// The doors of the library: which target runs, and how a call is cut into items.
#include "kernels.hpp"

#include <string.h>
#include <sys/mman.h>

#define DOOR extern "C" __attribute__((visibility("default")))

namespace {

const Target *const TARGETS[] = {
#if defined(__x86_64__)
    &avx512_target, &avx2_target,
#endif
    &baseline_target};

const Kernels *find(const char *name, int64_t width) {
    for (const Target *target : TARGETS) {
        if (strcmp(name, target->name) || !target->here()) continue;
        if (width == 4) return &target->single;
        if (width == 8) return &target->twice;
    }
    return nullptr;
}

int64_t over(int64_t n, int64_t by) { return (n + by - 1) / by; }

// Threads worth waking: each should have some tens of microseconds of work, in numbers of state advanced by a token.
int64_t useful(int64_t threads, int64_t numbers) {
    const int64_t enough = 1 + numbers / (1 << 18);
    return threads < enough ? threads : enough;
}

struct Scan {
    const tsgdn2_scan &x;
    const Kernels &kernels;
    int64_t parts, columns;  // of V
    int64_t heads, groups;   // heads that one item takes together, and how many such groups a sequence has
    int64_t threads;

    int64_t items() const { return x.sequences * groups * parts; }
};

// Heads are taken together until a token's keys fill PIECE bytes: shorter pieces of every row, a row apart, cost a
// third of the time in misses. Fewer where threads would be idle; the grouping changes no bit.
Scan cut(const tsgdn2_scan &x, const Kernels &kernels) {
    constexpr int64_t PIECE = 1024;
    Scan scan = {x, kernels, over(x.values, x.columns), x.columns, 1, 1, 1};
    scan.threads = useful(x.threads, tokens_of(x) * x.heads * x.keys * x.values);
    scan.heads = over(PIECE, x.keys * x.width);
    if (scan.heads > x.heads) scan.heads = x.heads;
    const int64_t wanted = over(scan.threads, x.sequences * scan.parts);
    if (over(x.heads, scan.heads) < wanted) scan.heads = x.heads > wanted ? x.heads / wanted : 1;
    scan.groups = over(x.heads, scan.heads);
    return scan;
}

Item item_of(const Scan &scan, int64_t number) {
    const int64_t part = number % scan.parts, group = number / scan.parts % scan.groups;
    const int64_t from = part * scan.columns, to = from + scan.columns, head = group * scan.heads;
    const int64_t rest = scan.x.heads - head;
    return {
        number / scan.parts / scan.groups, head, rest < scan.heads ? rest : scan.heads, part, from,
        to < scan.x.values ? to : scan.x.values};
}

void forward_item(const void *context, int64_t number, char *scratch) {
    const Scan &scan = *static_cast<const Scan *>(context);
    scan.kernels.forward(scan.x, item_of(scan, number), scratch);
}

void backward_item(const void *context, int64_t number, char *scratch) {
    const Scan &scan = *static_cast<const Scan *>(context);
    scan.kernels.backward(scan.x, item_of(scan, number), scratch);
}

struct Step {
    const tsgdn2_step &x;
    const Kernels &kernels;
    int64_t rows;
};

void step_rows(const void *context, int64_t number, char *scratch) {
    const Step &step = *static_cast<const Step *>(context);
    const int64_t begin = number * step.rows, end = begin + step.rows;
    step.kernels.step(step.x, begin, end < step.x.rows ? end : step.x.rows, scratch);
}

// Fresh results of megabytes are mapped page by page at their first write, a fifth of forward and backward: larger
// pages are asked for, as numpy does. Where the system has none, or they are not fresh, nothing changes.
void enlarge(const void *memory, int64_t bytes) {
#ifdef MADV_HUGEPAGE
    constexpr uintptr_t PAGE = 1 << 21;
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + PAGE - 1) / PAGE * PAGE;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + static_cast<uintptr_t>(bytes)) / PAGE * PAGE;
    if (memory && begin < end) madvise(reinterpret_cast<void *>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)memory, (void)bytes;
#endif
}

}  // namespace

DOOR int tsgdn2_abi(void) { return TSGDN2_ABI; }

DOOR const char *tsgdn2_targets(void) {
    static char names[64];
    if (!names[0]) {
        char found[64] = "";
        for (const Target *target : TARGETS) {
            if (!target->here()) continue;
            if (found[0]) strcat(found, " ");
            strcat(found, target->name);
        }
        memcpy(names, found, sizeof(names));
    }
    return names;
}

DOOR int tsgdn2_forward(const tsgdn2_scan *x, const char *target) {
    const Kernels *kernels = find(target, x->width);
    if (!kernels || x->columns < 1) return TSGDN2_BAD_ARGUMENT;
    const Scan scan = cut(*x, *kernels);
    const int64_t tokens = tokens_of(*x), values = tokens * x->heads * x->values * x->width;
    const int64_t points =
        x->offsets ? x->tokens / TSGDN2_CHUNK + x->sequences : x->sequences * over(x->tokens, TSGDN2_CHUNK);
    enlarge(x->o, values), enlarge(x->u, values);
    enlarge(x->checkpoints, points * x->heads * x->keys * x->values * x->width);
    const int64_t bytes = kernels->forward_bytes(scan.heads, x->keys, scan.columns);
    return run_items(scan.items(), scan.threads, bytes, forward_item, &scan);
}

DOOR int tsgdn2_backward(const tsgdn2_scan *x, const char *target) {
    const Kernels *kernels = find(target, x->width);
    if (!kernels || x->columns < 1) return TSGDN2_BAD_ARGUMENT;
    const Scan scan = cut(*x, *kernels);
    const int64_t tokens = tokens_of(*x), values = tokens * x->heads * x->values * x->width;
    void *const by_keys[] = {x->dq, x->dk, x->d_erase, x->dg};
    for (void *gradient : by_keys) enlarge(gradient, scan.parts * tokens * x->heads * x->keys * x->width);
    enlarge(x->d_value, values), enlarge(x->d_write, values);
    const int64_t bytes = kernels->backward_bytes(scan.heads, x->keys, scan.columns);
    return run_items(scan.items(), scan.threads, bytes, backward_item, &scan);
}

DOOR int tsgdn2_advance(const tsgdn2_step *x, const char *target) {
    const Kernels *kernels = find(target, x->width);
    if (!kernels) return TSGDN2_BAD_ARGUMENT;
    if (!x->rows) return TSGDN2_DONE;
    // A thread's rows lie together, so that each state is fetched while the one before it is worked on.
    const int64_t threads = useful(x->threads, x->rows * x->heads * x->keys * x->values);
    const int64_t rows = over(x->rows, threads > 1 ? 4 * threads : 1);
    const Step step = {*x, *kernels, rows};
    return run_items(over(x->rows, rows), threads, kernels->forward_bytes(1, x->keys, x->values), step_rows, &step);
}
