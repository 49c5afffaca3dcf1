// From an item's inputs to its gradients: chunks from the last to the first, panels.hpp inside.
//
//     dq, dk, de, dg from the sums over V;   b: db = m k de, dk += m b de;   w: dv = m w dz, dw = m v dz
//
// Gradients are finished for COLUMNS rows of V and added in order: who does which, and what else is in the batch,
// changes no bit.

template <class F> INLINE void put_row(F *to, const F *from, int64_t n, bool more) {
    if (!more) return copy_row(to, from, n, n);
    for (int64_t i = 0; i < n; ++i) to[i] += from[i];
}

// A block's sums, `width` rows of V from `from` on, to the gradients of the inputs; the first block sets, others add.
template <class F>
static void hand_out(
    const tsgdn2_scan &x, const Item &item, int64_t number, const Head<F> &head, const Backward<F> &b, int64_t first,
    int64_t count, int64_t from, int64_t width) {
    constexpr int64_t L = Wide<F>::lanes;
    const int64_t K = x.keys, V = x.values, KU = b.rows.keys_up;
    const int64_t heads = x.heads, every = item.part * tokens_of(x);
    for (int64_t t = 0; t < count; ++t) {
        const int64_t token = first + t, key_at = ((every + token) * heads + number) * K;
        const int64_t value_at = (token * heads + number) * V + item.from + from;
        const F m = weight(head, token);
        const F *a = b.rows.a + t * KU, *k = b.rows.k + t * KU;
        F *dq = b.sums + 4 * t * KU, *dk = dq + KU, *de = dk + KU, *dg = de + KU;
        const F u_do = b.u_do[t], scale = F(x.scale);
        for (int64_t i = 0; i < KU; i += L) {
            const Vec<F> decay = load(a + i);
            store(dq + i, (load(dq + i) * decay + load(k + i) * u_do) * scale);
            store(de + i, -load(de + i) * decay);
            store(dg + i, load(dg + i) * decay);
        }
        if (m == 0) {  // what is emptied gets no gradient, and neither does a query that counts as 0
            const F *q = head.q + token * head.keys_apart;
            for (int64_t i = 0; i < K; ++i) dq[i] = q[i] - q[i] == 0 ? dq[i] : F(0);
            for (int64_t i = 0; i < KU; ++i) dk[i] = de[i] = 0;
        } else if (x.write) {
            const F *gate = whole(head.erase + token * head.keys_apart, b.rows.copy, K, KU);
            for (int64_t i = 0; i < KU; i += L) {
                const Vec<F> d = load(de + i) * m;
                store(dk + i, load(dk + i) + load(gate + i) * d);
                store(de + i, load(k + i) * d);
            }
        }
        put_row(static_cast<F *>(x.dq) + key_at, dq, K, from > 0);
        put_row(static_cast<F *>(x.dk) + key_at, dk, K, from > 0);
        put_row(static_cast<F *>(x.d_erase) + key_at, de, K, from > 0);
        put_row(static_cast<F *>(x.dg) + key_at, dg, K, from > 0);
        const F *dz = b.du + t * b.block;
        F *d_value = static_cast<F *>(x.d_value) + value_at;
        if (!x.write) {
            copy_row(d_value, dz, width, width);
            continue;
        }
        F *d_write = static_cast<F *>(x.d_write) + value_at;
        if (m == 0) {
            for (int64_t i = 0; i < width; ++i) d_value[i] = d_write[i] = 0;
            continue;
        }
        const int64_t at = token * head.values_apart + from;
        const F *v = head.value + at, *w = head.write + at;
        for (int64_t i = 0; i < width; ++i) {
            const F d = m * dz[i];
            d_value[i] = w[i] * d;
            d_write[i] = v[i] * d;
        }
    }
}

// The block's rows of u and do, their products, and sums to begin with.
template <class F>
static void take_reads(
    const tsgdn2_scan &x, const Backward<F> &b, int64_t at, int64_t count, int64_t part, int64_t part_up) {
    const F *u = static_cast<const F *>(x.u) + at, *d_o = static_cast<const F *>(x.d_o) + at;
    for (int64_t t = 0; t < count; ++t) {
        copy_row(b.u + t * b.block, u + t * x.heads * x.values, part, part_up);
        copy_row(b.d_o + t * b.block, d_o + t * x.heads * x.values, part, part_up);
        Vec<F> dot = {};
        for (int64_t i = 0; i < part_up; i += Wide<F>::lanes)
            dot += load(b.u + t * b.block + i) * load(b.d_o + t * b.block + i);
        b.u_do[t] = sum<F>(dot);
    }
    for (int64_t i = 0; i < count * 4 * b.rows.keys_up; ++i) b.sums[i] = 0;
}

// Rows [from, to) of V of an item's heads, chunk by chunk from the last.
template <class F> static void backward(const tsgdn2_scan &x, const Item &item, char *scratch) {
    const Span span(x, item);
    const int64_t K = x.keys, V = x.values, width = item.to - item.from;
    Carver memory{scratch, 0};
    const Backward<F> b(memory, item.heads, K, width);
    const int64_t L = Wide<F>::lanes, KU = b.rows.keys_up, VU = b.rows.values_up;
    const int64_t first_state = item.sequence * x.heads + item.head;
    for (int64_t h = 0; h < item.heads; ++h) {
        const F *d_final = static_cast<const F *>(x.d_final) + (first_state + h) * K * V + item.from;
        turn<F>(b.D + h * VU * KU, KU, d_final, V, K, width, VU);
    }
    for (int64_t chunk = (span.end - span.begin + CHUNK - 1) / CHUNK - 1; chunk >= 0; --chunk) {
        const int64_t first = span.begin + chunk * CHUNK;
        const int64_t count = span.end - first < CHUNK ? span.end - first : CHUNK;
        for (int64_t h = 0; h < item.heads; ++h) {
            const int64_t number = item.head + h;
            const Head<F> head = head_of<F>(x, number, item.from, item.to);
            gather<F, false>(head, b.rows, first, count, F(x.scale));
            const Behind<F> behind(x, item, head, number, span.begin, first);
            const F *kept = static_cast<const F *>(x.checkpoints);
            kept += (span.checkpoint(first) * x.heads + number) * K * V + item.from;
            for (int64_t from = 0; from < width; from += b.block) {
                const int64_t part = width - from < b.block ? width - from : b.block, part_up = up(part, L);
                take_reads(x, b, (first * x.heads + number) * V + item.from + from, count, part, part_up);
                for (int64_t row = 0; row < part_up; row += b.panel) {
                    const int64_t rows = part_up - row < b.panel ? part_up - row : b.panel;
                    turn<F>(b.states, KU, kept + from + row, V, K, part - row, rows);
                    reverse<F>(b, b.D + (h * VU + from + row) * KU, row, rows, count, from + row ? nullptr : &behind);
                }
                hand_out<F>(x, item, number, head, b, first, count, from, part);
            }
        }
    }
    for (int64_t h = 0; h < item.heads; ++h) {
        F *d_initial = static_cast<F *>(x.d_initial) + (first_state + h) * K * V + item.from;
        turn_back<F>(d_initial, V, b.D + h * VU * KU, KU, K, width);
    }
}
