// The recurrence token by token on a state that stays in the first-level cache (math.md 1):
//
//     y = S^T (a e),  p = S^T (a q)          one pass that reads S
//     u = z - y,      o = p + (k . q) u      (q times scale)
//     S <- Diag(a) S + k u^T                 one pass that reads and writes S
//
// 7 K V operations in 4 K V instructions' lanes, columns of S across the lanes: no sum across lanes is needed, and a
// column's bits depend on nothing but its own numbers. The limit: tokens are strictly one after another.

// NV vectors of columns at once. Fewer than eight sums in flight would wait for each other: U rows at once then.
// With `soon`, the rows of a state that is needed soon are asked for, a few lines for every row that is read.
template <class F, int NV>
INLINE void advance(
    F *S, int64_t apart, int64_t keys, const F *a, const F *e, const F *q, const F *k, F kq, const F *z, F *o, F *u,
    const F *soon) {
    constexpr int L = Wide<F>::lanes, U = NV >= 4 ? 1 : NV >= 2 ? 2 : 4;
    Vec<F> y[U][NV] = {}, p[U][NV] = {};
    int64_t j = 0;
    for (; j + U <= keys; j += U) {
#pragma GCC unroll 4
        for (int x = 0; x < U; ++x) {
            if (soon) fetch(soon + (j + x) * apart, NV * L);
            const Vec<F> erase = all(e[j + x]), query = all(q[j + x]);
#pragma GCC unroll 4
            for (int i = 0; i < NV; ++i) {
                Vec<F> s = load(S + (j + x) * apart + i * L);
                IN_REGISTER(s);
                y[x][i] += erase * s;
                p[x][i] += query * s;
            }
        }
    }
    if constexpr (U > 1) {
        for (; j < keys; ++j) {
#pragma GCC unroll 4
            for (int i = 0; i < NV; ++i) {
                const Vec<F> s = load(S + j * apart + i * L);
                y[0][i] += e[j] * s;
                p[0][i] += q[j] * s;
            }
        }
    }
    Vec<F> change[NV];
#pragma GCC unroll 4
    for (int i = 0; i < NV; ++i) {
#pragma GCC unroll 4
        for (int x = 1; x < U; ++x) {
            y[0][i] += y[x][i];
            p[0][i] += p[x][i];
        }
        change[i] = load(z + i * L) - y[0][i];
        store(o + i * L, p[0][i] + kq * change[i]);
        store(u + i * L, change[i]);
    }
    for (j = 0; j < keys; ++j) {
        const Vec<F> decay = all(a[j]), key = all(k[j]);
#pragma GCC unroll 4
        for (int i = 0; i < NV; ++i) {
            F *s = S + j * apart + i * L;
            store(s, decay * load(s) + key * change[i]);
        }
    }
}

// What is asked for one token at a time: a token of the next chunk, where this one's results go, a state.
template <class F> struct Ahead {
    const Head<F> &head;
    int64_t end, first;
    const F *o, *u, *state;
    MEMBER void operator()(int64_t t) const {
        if (first + t + CHUNK < end) fetch_token(head, first + t + CHUNK);
        if (o) fetch(o + (first + t) * head.values_apart, head.values);
        if (u) fetch(u + (first + t) * head.values_apart, head.values);
    }
};

template <class F, int NV>
static void columns(
    F *S, int64_t apart, const Rows<F> &r, int64_t keys, int64_t count, int64_t column, F *o, F *u,
    const Ahead<F> &ahead) {
    for (int64_t t = 0; t < count; ++t) {
        if (column == 0) ahead(t);
        const int64_t at = t * r.keys_up, to = t * r.values_up + column;
        advance<F, NV>(
            S + column, apart, keys, r.a + at, r.e + at, r.q + at, r.k + at, r.kq[t], r.z + to, o + to, u + to,
            ahead.state ? ahead.state + column : nullptr);
    }
}

// All columns of S, whose rows lie `apart` numbers from each other, over `count` tokens gathered for the forward.
template <class F>
static void walk(
    F *S, int64_t apart, const Rows<F> &r, int64_t keys, int64_t count, F *o, F *u, const Ahead<F> &ahead) {
    constexpr int64_t L = Wide<F>::lanes;
    constexpr int MOST = COLUMNS / L < 4 ? COLUMNS / L : 4;  // a cut at COLUMNS changes no bit
    int64_t column = 0;
    for (; column + MOST * L <= r.values_up; column += MOST * L)
        columns<F, MOST>(S, apart, r, keys, count, column, o, u, ahead);
    const int64_t rest = (r.values_up - column) / L;
    if (rest == 3) columns<F, 3>(S, apart, r, keys, count, column, o, u, ahead);
    if (rest == 2) columns<F, 2>(S, apart, r, keys, count, column, o, u, ahead);
    if (rest == 1) columns<F, 1>(S, apart, r, keys, count, column, o, u, ahead);
}

template <class F> struct Forward {
    Rows<F> rows;
    int64_t size;  // of one head's padded state
    F *S, *o, *u;
    MEMBER Forward(Carver &memory, int64_t heads, int64_t keys, int64_t values) : rows(memory, keys, values) {
        size = keys * rows.values_up;
        S = memory.take<F>(heads * size);
        o = memory.take<F>(CHUNK * rows.values_up);
        u = memory.take<F>(CHUNK * rows.values_up);
    }
};

// Columns [from, to) of an item's heads, chunk by chunk: what lies together in memory is read together.
template <class F> static void forward(const tsgdn2_scan &x, const Item &item, char *scratch) {
    const Span span(x, item);
    const int64_t K = x.keys, V = x.values, width = item.to - item.from, VU = up(width, Wide<F>::lanes);
    Carver memory{scratch, 0};
    const Forward<F> f(memory, item.heads, K, width);
    const int64_t state = (item.sequence * x.heads + item.head) * K * V + item.from;
    const F *initial = static_cast<const F *>(x.initial) + state;
    F *final = static_cast<F *>(x.final) + state, *o = static_cast<F *>(x.o), *u = static_cast<F *>(x.u);
    F *kept = static_cast<F *>(x.checkpoints);
    for (int64_t j = 0; j < item.heads * K; ++j) copy_row(f.S + j * VU, initial + j * V, width, VU);
    for (int64_t first = span.begin; first < span.end; first += CHUNK) {
        const int64_t count = span.end - first < CHUNK ? span.end - first : CHUNK;
        for (int64_t h = 0; h < item.heads; ++h) {
            const int64_t number = item.head + h, row = number * V + item.from;
            const Head<F> head = head_of<F>(x, number, item.from, item.to);
            F *S = f.S + h * f.size;
            if (kept) {
                F *point = kept + (span.checkpoint(first) * x.heads + number) * K * V + item.from;
                for (int64_t j = 0; j < K; ++j) copy_row(point + j * V, S + j * VU, width, width);
            }
            gather<F, true>(head, f.rows, first, count, F(x.scale));
            const Ahead<F> ahead{head, span.end, first, o + row, u ? u + row : nullptr, nullptr};
            walk<F>(S, VU, f.rows, K, count, f.o, f.u, ahead);
            for (int64_t t = 0; t < count; ++t) {
                const int64_t at = (first + t) * x.heads * V + row;
                copy_row(o + at, f.o + t * VU, width, width);
                if (u) copy_row(u + at, f.u + t * VU, width, width);
            }
        }
    }
    for (int64_t j = 0; j < item.heads * K; ++j) copy_row(final + j * V, f.S + j * VU, width, width);
}
