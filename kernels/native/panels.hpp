// Gradients of the recurrence (math.md 1), tokens in reverse, from one kept state every CHUNK tokens and every u:
//
//     S_t    = Diag(a) S_{t-1} + k u^T       made again inside the chunk; all S_{t-1} of a panel stay at hand
//     dS    += q do^T                        dq += S_t do            (q times scale)
//     du     = dS^T k,  dz = du              dk  = dS u
//     dS    -= e du^T                        de  = -a S_{t-1} du
//     dS    <- Diag(a) dS                    dg  = a rowsum(dS S_{t-1})     (dS before the product with a)
//
// Transposed, keys across the lanes: du alone sums across lanes, dq, dk, de and dg need not. Rows of V are taken in
// panels whose dS and S fit the first-level cache.

// The working memory of one thread.
template <class F> struct Backward {
    int64_t block, panel;  // rows of V summed together, and rows at once
    Rows<F> rows;
    F *D, *states, *u, *d_o, *du, *u_do, *sums, *partial;

    MEMBER Backward(Carver &memory, int64_t heads, int64_t keys, int64_t values) : rows(memory, keys, values) {
        constexpr int64_t L = Wide<F>::lanes;
        panel = up(PANEL_BYTES / (rows.keys_up * static_cast<int64_t>(sizeof(F))), L);
        if (panel < L) panel = L;  // thousands of keys: one vector of rows, though their dS fits no first level
        block = rows.values_up < COLUMNS ? rows.values_up : COLUMNS;
        if (panel > block) panel = block;
        D = memory.take<F>(heads * rows.values_up * rows.keys_up);
        states = memory.take<F>(CHUNK * panel * rows.keys_up);
        u = memory.take<F>(CHUNK * block);
        d_o = memory.take<F>(CHUNK * block);
        du = memory.take<F>(CHUNK * block);
        u_do = memory.take<F>(CHUNK);
        sums = memory.take<F>(CHUNK * 4 * rows.keys_up);
        partial = memory.take<F>(panel * L);
    }
};

// S_t from S_{t-1}, for the rows of a panel.
template <class F, int NK>
INLINE void again(F *next, const F *S, int64_t rows, int64_t apart, const F *a, const F *k, const F *u) {
    constexpr int L = Wide<F>::lanes;
    Vec<F> decay[NK], key[NK];
#pragma GCC unroll 4
    for (int i = 0; i < NK; ++i) decay[i] = load(a + i * L), key[i] = load(k + i * L);
    for (int64_t v = 0; v < rows; ++v) {
        const Vec<F> change = all(u[v]);
#pragma GCC unroll 4
        for (int i = 0; i < NK; ++i)
            store(next + v * apart + i * L, decay[i] * load(S + v * apart + i * L) + key[i] * change);
    }
}

// dS += q do^T; partial sums of du; dq and dk.
template <class F, int NK>
INLINE void read_write(
    F *D, const F *S, int64_t rows, int64_t apart, const F *q, const F *k, const F *d_o, const F *u, F *partial,
    bool more, F *dq, F *dk) {
    constexpr int L = Wide<F>::lanes;
    Vec<F> query[NK], key[NK], to_q[NK], to_k[NK];
#pragma GCC unroll 4
    for (int i = 0; i < NK; ++i) {
        query[i] = load(q + i * L), key[i] = load(k + i * L);
        to_q[i] = load(dq + i * L), to_k[i] = load(dk + i * L);
    }
    for (int64_t v = 0; v < rows; ++v) {
        const Vec<F> read = all(d_o[v]), change = all(u[v]);
        Vec<F> along = more ? load(partial + v * L) : Vec<F>{};
#pragma GCC unroll 4
        for (int i = 0; i < NK; ++i) {
            const Vec<F> d = load(D + v * apart + i * L) + read * query[i];
            store(D + v * apart + i * L, d);
            along += key[i] * d;
            to_k[i] += change * d;
            to_q[i] += read * load(S + v * apart + i * L);
        }
        store(partial + v * L, along);
    }
#pragma GCC unroll 4
    for (int i = 0; i < NK; ++i) store(dq + i * L, to_q[i]), store(dk + i * L, to_k[i]);
}

// dS -= e du^T, then times a; de and dg.
template <class F, int NK>
INLINE void erase_decay(
    F *D, const F *S, int64_t rows, int64_t apart, const F *e, const F *a, const F *du, F *de, F *dg) {
    constexpr int L = Wide<F>::lanes;
    Vec<F> erase[NK], decay[NK], to_e[NK], to_g[NK];
#pragma GCC unroll 4
    for (int i = 0; i < NK; ++i) {
        erase[i] = load(e + i * L), decay[i] = load(a + i * L);
        to_e[i] = load(de + i * L), to_g[i] = load(dg + i * L);
    }
    for (int64_t v = 0; v < rows; ++v) {
        const Vec<F> change = all(du[v]);
#pragma GCC unroll 4
        for (int i = 0; i < NK; ++i) {
            const Vec<F> s = load(S + v * apart + i * L);
            const Vec<F> d = load(D + v * apart + i * L) - change * erase[i];
            to_e[i] += change * s;
            to_g[i] += d * s;
            store(D + v * apart + i * L, decay[i] * d);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < NK; ++i) store(de + i * L, to_e[i]), store(dg + i * L, to_g[i]);
}

// What the chunk before needs, and where this chunk's gradients go: asked for one token at a time.
template <class F> struct Behind {
    const Head<F> &head;
    const F *u, *d_o, *to_keys[4], *to_values[2];
    int64_t begin, first;

    MEMBER Behind(
        const tsgdn2_scan &x, const Item &item, const Head<F> &of, int64_t number, int64_t begin, int64_t first)
        : head(of), begin(begin), first(first) {
        const int64_t key = item.part * tokens_of(x) * head.keys_apart + number * x.keys;
        const int64_t value = number * x.values + item.from;
        u = static_cast<const F *>(x.u) + value, d_o = static_cast<const F *>(x.d_o) + value;
        to_keys[0] = static_cast<const F *>(x.dq) + key, to_keys[1] = static_cast<const F *>(x.dk) + key;
        to_keys[2] = static_cast<const F *>(x.d_erase) + key, to_keys[3] = static_cast<const F *>(x.dg) + key;
        to_values[0] = static_cast<const F *>(x.d_value) + value;
        to_values[1] = x.write ? static_cast<const F *>(x.d_write) + value : nullptr;
    }
    MEMBER void operator()(int64_t t) const {
        const int64_t now = first + t, soon = now - CHUNK;
        if (soon >= begin) {
            fetch_token(head, soon);
            fetch(u + soon * head.values_apart, head.values), fetch(d_o + soon * head.values_apart, head.values);
        }
        for (int i = 0; i < 4; ++i) fetch(to_keys[i] + now * head.keys_apart, head.keys);
        fetch(to_values[0] + now * head.values_apart, head.values);
        if (to_values[1]) fetch(to_values[1] + now * head.values_apart, head.values);
    }
};

// One panel, `rows` rows of a block from `row` on, over the chunk's tokens in reverse. b.states starts with its first
// state; D is the panel's.
template <class F>
static void reverse(
    const Backward<F> &b, F *D, int64_t row, int64_t rows, int64_t count, const Behind<F> *behind) {
    constexpr int64_t L = Wide<F>::lanes, STEP = NK_AT_ONCE * L;
    const int64_t KU = b.rows.keys_up, size = rows * KU;
    const Rows<F> &r = b.rows;
    for (int64_t t = 0; t + 1 < count; ++t) {
        const F *S = b.states + t * size, *a = r.a + t * KU, *k = r.k + t * KU, *u = b.u + t * b.block + row;
        F *next = b.states + (t + 1) * size;
        int64_t j = 0;
        for (; j + STEP <= KU; j += STEP) again<F, NK_AT_ONCE>(next + j, S + j, rows, KU, a + j, k + j, u);
        for (; j < KU; j += L) again<F, 1>(next + j, S + j, rows, KU, a + j, k + j, u);
    }
    for (int64_t t = count - 1; t >= 0; --t) {
        const F *S = b.states + t * size, *u = b.u + t * b.block + row, *d_o = b.d_o + t * b.block + row;
        const F *a = r.a + t * KU, *e = r.e + t * KU, *q = r.q + t * KU, *k = r.k + t * KU;
        F *du = b.du + t * b.block + row;
        if (behind) (*behind)(t);
        F *dq = b.sums + 4 * t * KU, *dk = dq + KU, *de = dk + KU, *dg = de + KU;
        int64_t j = 0;
        for (; j + STEP <= KU; j += STEP)
            read_write<F, NK_AT_ONCE>(D + j, S + j, rows, KU, q + j, k + j, d_o, u, b.partial, j > 0, dq + j, dk + j);
        for (; j < KU; j += L)
            read_write<F, 1>(D + j, S + j, rows, KU, q + j, k + j, d_o, u, b.partial, j > 0, dq + j, dk + j);
        for (int64_t v = 0; v < rows; v += L) {
            Vec<F> block[L];
#pragma GCC unroll 16
            for (int i = 0; i < L; ++i) block[i] = load(b.partial + (v + i) * L);
            store(du + v, sums<F>(block));
        }
        for (j = 0; j + STEP <= KU; j += STEP)
            erase_decay<F, NK_AT_ONCE>(D + j, S + j, rows, KU, e + j, a + j, du, de + j, dg + j);
        for (; j < KU; j += L) erase_decay<F, 1>(D + j, S + j, rows, KU, e + j, a + j, du, de + j, dg + j);
    }
}
