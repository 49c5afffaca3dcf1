// Vectors as wide as the target's registers, and the three things that plain loops do badly with them:
// an exponential, a transpose, and sums across lanes.
//
//     exp x = 2^n exp r,   n = round(x / ln 2),   |r| <= ln 2 / 2,   exp r by Taylor (error below 2^-27 and 2^-57)
//
// A vector type wider than the register is lowered to memory traffic (16 times slower), so BYTES comes from the file
// that includes this one: baseline.cpp, avx2.cpp, avx512.cpp. Everything lies in that file's own namespace and nothing
// of std is used: code of one target must never be merged with another's by the linker.

#define MEMBER inline __attribute__((always_inline))
#define INLINE static MEMBER

// Loaded once: compilers otherwise read memory again for every product, and loads are what the first pass waits for.
#if defined(__x86_64__)
#define IN_REGISTER(vector) __asm__("" : "+v"(vector))
#else
#define IN_REGISTER(vector) (void)vector
#endif

template <class F> struct Of;
template <> struct Of<float> {
    typedef uint32_t Bits;
    // 1.5 * 2^23: added, it leaves round(x) in the low bits. Only without -ffast-math.
    static constexpr float magic = 12582912.0f, lowest = -87.0f, highest = 88.0f;
    static constexpr float high = 0.693145751953125f, low = 1.42860677e-6f;  // ln 2 in two parts
    static constexpr int bias = 127, fraction = 23, degree = 7;
};
template <> struct Of<double> {
    typedef uint64_t Bits;
    static constexpr double magic = 6755399441055744.0, lowest = -708.0, highest = 709.0;
    static constexpr double high = 6.93147180369123816490e-01, low = 1.90821492927058770002e-10;
    static constexpr int bias = 1023, fraction = 52, degree = 13;
};

template <class F> struct Wide {
    static constexpr int lanes = BYTES / static_cast<int>(sizeof(F));
    typedef F Vec __attribute__((vector_size(BYTES)));
    typedef typename Of<F>::Bits Bits __attribute__((vector_size(BYTES)));
    typedef F Loose __attribute__((vector_size(BYTES), aligned(sizeof(F)), may_alias));
};
template <class F> using Vec = typename Wide<F>::Vec;

template <class F> INLINE Vec<F> load(const F *x) { return *reinterpret_cast<const typename Wide<F>::Loose *>(x); }
template <class F> INLINE void store(F *x, Vec<F> v) { *reinterpret_cast<typename Wide<F>::Loose *>(x) = v; }
template <class F> INLINE Vec<F> all(F x) { return x - Vec<F>{}; }

INLINE int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

constexpr int64_t factorial(int n) { return n < 2 ? 1 : n * factorial(n - 1); }

// Exactly 1 at 0: a token without decay changes nothing. Numbers below e^lowest become 0, NaN stays NaN.
template <class F> INLINE Vec<F> exponential(Vec<F> x) {
    typedef typename Wide<F>::Bits Bits;
    const Vec<F> lowest = all<F>(Of<F>::lowest), highest = all<F>(Of<F>::highest);
    const auto small = x < lowest, large = x > highest;
    Vec<F> y = small ? lowest : x;
    y = large ? highest : y;
    const Vec<F> shifted = y * F(1.44269504088896340736) + Of<F>::magic;
    const Vec<F> n = shifted - Of<F>::magic;
    const Vec<F> r = (y - n * Of<F>::high) - n * Of<F>::low;
    Vec<F> sum = all<F>(F(1) / F(factorial(Of<F>::degree)));
#pragma GCC unroll 16
    for (int i = Of<F>::degree - 1; i >= 0; --i) sum = sum * r + F(1) / F(factorial(i));
    const Bits power = (reinterpret_cast<Bits>(shifted) + Of<F>::bias) << Of<F>::fraction;
    sum *= reinterpret_cast<Vec<F>>(power);
    sum = small ? Vec<F>{} : sum;
    return large ? all<F>(F(__builtin_inf())) : sum;
}

template <int... I> struct Indices {};
template <int N, int... I> struct Count : Count<N - 1, N - 1, I...> {};
template <int... I> struct Count<0, I...> { typedef Indices<I...> type; };

// Of every 2h lanes: half 0 keeps a's first h and puts b's first h behind them, half 1 does so with the second h.
template <class F, int h, int half, int... I> INLINE Vec<F> halves(Vec<F> a, Vec<F> b, Indices<I...>) {
    return __builtin_shufflevector(
        a, b, ((I / (2 * h)) * 2 * h + half * h + I % h + ((I / h) % 2 ? int(sizeof...(I)) : 0))...);
}

// Rows to columns, in place: log2(lanes) rounds of exchanged halves.
template <class F, int h = Wide<F>::lanes / 2> INLINE void transpose(Vec<F> *rows) {
    constexpr int L = Wide<F>::lanes;
    typedef typename Count<L>::type All;
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) {
        if (i & h) continue;
        const Vec<F> a = rows[i], b = rows[i + h];
        rows[i] = halves<F, h, 0>(a, b, All{});
        rows[i + h] = halves<F, h, 1>(a, b, All{});
    }
    if constexpr (h > 1) transpose<F, h / 2>(rows);
}

// Lane i of the result is the sum over the lanes of rows[i]. A tree: the same order for every row and every place.
template <class F, int h = Wide<F>::lanes / 2> INLINE Vec<F> sums(Vec<F> *rows) {
    typedef typename Count<Wide<F>::lanes>::type All;
#pragma GCC unroll 16
    for (int i = 0; i < h; ++i)
        rows[i] = halves<F, h, 0>(rows[i], rows[i + h], All{}) + halves<F, h, 1>(rows[i], rows[i + h], All{});
    if constexpr (h > 1) return sums<F, h / 2>(rows);
    else return rows[0];
}

template <class F> INLINE F sum(Vec<F> v) {
    F lanes[Wide<F>::lanes];
    store<F>(lanes, v);
    F total = 0;
    for (int i = 0; i < Wide<F>::lanes; ++i) total += lanes[i];
    return total;
}
