// Items over threads, without a pool of our own.
//
// A second pool beside torch's would fight it for the cores: idle threads of OpenMP spin for a while before they
// sleep. torch has loaded an OpenMP library; its GOMP_parallel is asked for by name at run time (libgomp has it, and
// so have LLVM's and Intel's libraries on Linux), which gives torch's own threads and needs nothing at build time.
// Where it is missing, threads are made for the call and joined (tens of microseconds each).
#include "kernels.hpp"

#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>

namespace {

typedef void (*Parallel)(void (*)(void *), void *, unsigned threads, unsigned flags);

struct Call {
    int64_t items, bytes, next;
    Work work;
    const void *context;
};

// Items are taken one by one as threads come free: sequences differ in length. A thread without memory takes none.
void take(void *argument) {
    Call *call = static_cast<Call *>(argument);
    void *scratch = nullptr;
    if (posix_memalign(&scratch, 64, static_cast<size_t>(call->bytes))) return;
    for (;;) {
        const int64_t item = __atomic_fetch_add(&call->next, 1, __ATOMIC_RELAXED);
        if (item >= call->items) break;
        call->work(call->context, item, static_cast<char *>(scratch));
    }
    free(scratch);
}

void *take_alone(void *argument) {
    take(argument);
    return nullptr;
}

void run_on_new_threads(Call *call, int64_t threads) {
    enum { MOST = 256 };
    pthread_t ids[MOST];
    int64_t made = 0;
    while (made < threads - 1 && made < MOST && !pthread_create(&ids[made], nullptr, take_alone, call)) ++made;
    take(call);
    for (int64_t i = 0; i < made; ++i) pthread_join(ids[i], nullptr);
}

Parallel torch_pool() {
    Parallel found = nullptr;
    void *symbol = dlsym(RTLD_DEFAULT, "GOMP_parallel");
    __builtin_memcpy(&found, &symbol, sizeof(found));
    return found;
}

}  // namespace

int run_items(int64_t items, int64_t threads, int64_t bytes, Work work, const void *context) {
    Call call = {items, bytes, 0, work, context};
    if (threads > items) threads = items;
    if (threads < 2) {
        take(&call);
    } else if (const Parallel parallel = torch_pool()) {
        parallel(take, &call, static_cast<unsigned>(threads), 0);
    } else {
        run_on_new_threads(&call, threads);
    }
    return call.next < call.items ? TSGDN2_NO_MEMORY : TSGDN2_DONE;
}
