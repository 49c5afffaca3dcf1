// One token for chosen states of a pool, in place (math.md 1): forward.hpp's arithmetic on the pool's own memory.
//
// A state is read and written once; while one is worked on, one a few KiB further is fetched: slots come in any order.
// States whose V is not whole vectors pass through a padded copy.

constexpr int64_t DISTANCE = 16384;  // bytes of states between the one at work and the one that is fetched

template <class F> static void step(const tsgdn2_step &x, int64_t begin, int64_t end, char *scratch) {
    const int64_t H = x.heads, K = x.keys, V = x.values, VU = up(V, Wide<F>::lanes), size = K * V;
    const int64_t bytes = size * static_cast<int64_t>(sizeof(F)), further = up(DISTANCE, bytes) / bytes;
    Carver memory{scratch, 0};
    const Forward<F> f(memory, 1, K, V);
    F *pool = static_cast<F *>(x.pool), *o = static_cast<F *>(x.o);
    for (int64_t number = begin * H; number < end * H; ++number) {
        const int64_t n = number / H, h = number % H, later = number + further;
        F *state = pool + (x.slots[n] * H + h) * size, *to = o + number * V;
        const F *soon = later < end * H ? pool + (x.slots[later / H] * H + later % H) * size : nullptr;
        const Head<F> head = head_of<F>(x, h, 0, V);
        const Ahead<F> ahead{head, end, n + 1 - CHUNK, nullptr, nullptr, VU == V ? soon : nullptr};  // its next token, too
        gather<F, true>(head, f.rows, n, 1, F(x.scale));
        if (VU == V) {
            walk<F>(state, V, f.rows, K, 1, to, f.u, ahead);
            continue;
        }
        if (soon) fetch(soon, size);
        for (int64_t j = 0; j < K; ++j) copy_row(f.S + j * VU, state + j * V, V, VU);
        walk<F>(f.S, VU, f.rows, K, 1, f.o, f.u, ahead);
        for (int64_t j = 0; j < K; ++j) copy_row(state + j * V, f.S + j * VU, V, V);
        copy_row(to, f.o, V, V);
    }
}
