// One chunk of a head's tokens, gathered from strided inputs into padded rows that lie close together.
//
//     a = exp g,   e = m b k,   z = m w v   (or e and z as given),   q <- scale q
//
// What the gates make lives here for one chunk and is never written to memory. An unobserved token (m = 0) is emptied
// before any product, so that NaN in it goes nowhere; its q still reads, with 0 for a number that is not finite.

constexpr int64_t CHUNK = TSGDN2_CHUNK, COLUMNS = TSGDN2_COLUMNS, LINE = 64;

// Hands out pieces of one block of memory, each on a cache line of its own. Without a base it only counts.
struct Carver {
    char *base;
    int64_t used;
    template <class F> MEMBER F *take(int64_t numbers) {
        F *piece = base ? reinterpret_cast<F *>(base + used) : nullptr;
        used += up(numbers * static_cast<int64_t>(sizeof(F)), LINE);
        return piece;
    }
};

// The inputs of one head: a token's keys lie `keys_apart` numbers behind the keys of the token before it.
template <class F> struct Head {
    const F *q, *k, *g, *erase, *value, *write, *mask;
    int64_t keys, values, keys_apart, values_apart;
};

template <class F> struct Rows {
    int64_t keys_up, values_up;  // the length of a row: whole vectors
    F *a, *e, *q, *k, *z, *kq;   // [CHUNK, keys_up], z [CHUNK, values_up], kq [CHUNK]: k . (scale q)
    F *copy;

    MEMBER Rows(Carver &memory, int64_t keys, int64_t values)
        : keys_up(up(keys, Wide<F>::lanes)), values_up(up(values, Wide<F>::lanes)) {
        a = memory.take<F>(CHUNK * keys_up);
        e = memory.take<F>(CHUNK * keys_up);
        q = memory.take<F>(CHUNK * keys_up);
        k = memory.take<F>(CHUNK * keys_up);
        z = memory.take<F>(CHUNK * values_up);
        kq = memory.take<F>(CHUNK);
        copy = memory.take<F>(4 * (keys_up > values_up ? keys_up : values_up));
    }
};

template <class F> INLINE void copy_row(F *to, const F *from, int64_t n, int64_t wide) {
    for (int64_t i = 0; i < n; ++i) to[i] = from[i];
    for (int64_t i = n; i < wide; ++i) to[i] = 0;
}

// The row itself when it is whole vectors long, otherwise a copy with zeros behind it.
template <class F> INLINE const F *whole(const F *row, F *copy, int64_t n, int64_t wide) {
    if (n == wide) return row;
    copy_row(copy, row, n, wide);
    return copy;
}

// Asks the second-level cache for a row that is needed later. Rows of one head lie apart by all heads: no machine
// guesses that. Not the first level: what is worked on now fills it, and half of its sets at that.
template <class F> INLINE void fetch(const F *row, int64_t n) {
    const char *from = reinterpret_cast<const char *>(row), *end = reinterpret_cast<const char *>(row + n);
    for (; from < end; from += LINE) __builtin_prefetch(from, 0, 2);
}

template <class F> INLINE F weight(const Head<F> &x, int64_t token) { return x.mask ? x.mask[token] : F(1); }

template <class F> INLINE void fetch_token(const Head<F> &x, int64_t t) {
    const int64_t at = t * x.keys_apart, behind = t * x.values_apart;
    fetch(x.q + at, x.keys), fetch(x.k + at, x.keys);
    fetch(x.g + at, x.keys), fetch(x.erase + at, x.keys);
    fetch(x.value + behind, x.values);
    if (x.write) fetch(x.write + behind, x.values);
}

// FORWARD: e and q already times a, for a state that is read before it is decayed; and z, which the backward needs not.
template <class F, bool FORWARD>
static void gather(const Head<F> &x, const Rows<F> &r, int64_t first, int64_t count, F scale) {
    constexpr int L = Wide<F>::lanes;
    const int64_t K = x.keys, V = x.values, KU = r.keys_up, VU = r.values_up;
    for (int64_t t = 0; t < count; ++t) {
        const int64_t at = (first + t) * x.keys_apart, behind = (first + t) * x.values_apart;
        const F m = weight(x, first + t);
        F *a = r.a + t * KU, *e = r.e + t * KU, *q = r.q + t * KU, *k = r.k + t * KU, *z = r.z + t * VU;
        const F *g = whole(x.g + at, r.copy, K, KU);
        Vec<F> kq = {};
        if (m == 0) {
            // k = -0, so that k u^T adds -0 to every number of the state and even a zero keeps its sign.
            for (int64_t i = 0; i < KU; ++i) e[i] = q[i] = 0, k[i] = -F(0);
            for (int64_t i = 0; i < K; ++i) q[i] = x.q[at + i] - x.q[at + i] == 0 ? x.q[at + i] : F(0);
            for (int64_t i = 0; i < KU; i += L) {
                const Vec<F> decay = exponential<F>(load(g + i)), query = load(q + i) * scale;
                store(a + i, decay);
                store(q + i, FORWARD ? query * decay : query);
            }
            if (FORWARD) for (int64_t i = 0; i < VU; ++i) z[i] = 0;
            r.kq[t] = 0;
            continue;
        }
        const F *keys = whole(x.k + at, r.copy + KU, K, KU), *queries = whole(x.q + at, r.copy + 2 * KU, K, KU);
        const F *gates = whole(x.erase + at, r.copy + 3 * KU, K, KU);
        for (int64_t i = 0; i < KU; i += L) {
            const Vec<F> decay = exponential<F>(load(g + i)), key = load(keys + i), query = load(queries + i) * scale;
            const Vec<F> erase = x.write ? load(gates + i) * (m * key) : load(gates + i);
            store(a + i, decay);
            store(k + i, key);
            store(e + i, FORWARD ? erase * decay : erase);
            store(q + i, FORWARD ? query * decay : query);
            kq += key * query;
        }
        if (!FORWARD) continue;
        r.kq[t] = sum<F>(kq);
        const F *v = whole(x.value + behind, r.copy, V, VU);
        if (x.write) {
            const F *w = whole(x.write + behind, r.copy + VU, V, VU);
            for (int64_t i = 0; i < VU; i += L) store(z + i, load(w + i) * (m * load(v + i)));
        } else {
            for (int64_t i = 0; i < VU; i += L) store(z + i, load(v + i));
        }
    }
}
