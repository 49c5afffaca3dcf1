// States between memory, [K,V], and the backward's working copies, [V,K] padded to whole vectors.

// to [columns, rows_up] <- from [rows, apart] transposed; what lies outside `rows` and `columns` is 0.
template <class F>
static void turn(
    F *to, int64_t rows_up, const F *from, int64_t apart, int64_t rows, int64_t columns, int64_t columns_up) {
    constexpr int64_t L = Wide<F>::lanes;
    for (int64_t j = 0; j < rows_up; j += L) {
        for (int64_t v = 0; v < columns_up; v += L) {
            Vec<F> block[L];
            for (int64_t i = 0; i < L; ++i) {
                if (j + i >= rows) {
                    block[i] = Vec<F>{};
                } else if (v + L <= columns) {
                    block[i] = load(from + (j + i) * apart + v);
                } else {
                    F edge[L] = {};
                    for (int64_t c = v; c < columns; ++c) edge[c - v] = from[(j + i) * apart + c];
                    block[i] = load(edge);
                }
            }
            transpose<F>(block);
            for (int64_t i = 0; i < L; ++i) store(to + (v + i) * rows_up + j, block[i]);
        }
    }
}

// The way back: to [rows, apart] <- from [columns, rows_up] transposed.
template <class F>
static void turn_back(F *to, int64_t apart, const F *from, int64_t rows_up, int64_t rows, int64_t columns) {
    constexpr int64_t L = Wide<F>::lanes;
    for (int64_t v = 0; v < columns; v += L) {
        for (int64_t j = 0; j < rows; j += L) {
            Vec<F> block[L];
            for (int64_t i = 0; i < L; ++i) block[i] = load(from + (v + i) * rows_up + j);
            transpose<F>(block);
            for (int64_t i = 0; i < L && j + i < rows; ++i) {
                F line[L];
                store(line, block[i]);
                for (int64_t c = v; c < v + L && c < columns; ++c) to[(j + i) * apart + c] = line[c - v];
            }
        }
    }
}
