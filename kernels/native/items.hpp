// Where the tokens of an item lie, and the inputs of its head.

// Tokens [begin, end) of a sequence, counted over the whole tensor.
struct Span {
    int64_t begin, end, checkpoints;

    MEMBER Span(const tsgdn2_scan &x, const Item &item) {
        const int64_t n = item.sequence;
        begin = x.offsets ? x.offsets[n] : n * x.tokens;
        end = x.offsets ? x.offsets[n + 1] : begin + x.tokens;
        // Packed sequences: begin / CHUNK + n never meets the next one's, whatever the lengths, and needs no table.
        checkpoints = x.offsets ? begin / CHUNK + n : n * (up(x.tokens, CHUNK) / CHUNK);
    }
    MEMBER int64_t checkpoint(int64_t token) const { return checkpoints + (token - begin) / CHUNK; }
};

template <class F, class Call> INLINE Head<F> head_of(const Call &x, int64_t head, int64_t from, int64_t to) {
    Head<F> h;
    const int64_t key = head * x.keys, value = head * x.values + from;
    h.q = static_cast<const F *>(x.q) + key;
    h.k = static_cast<const F *>(x.k) + key;
    h.g = static_cast<const F *>(x.g) + key;
    h.erase = static_cast<const F *>(x.erase) + key;
    h.value = static_cast<const F *>(x.value) + value;
    h.write = x.write ? static_cast<const F *>(x.write) + value : nullptr;
    h.mask = static_cast<const F *>(x.mask);
    h.keys = x.keys;
    h.values = to - from;
    h.keys_apart = x.heads * x.keys;
    h.values_apart = x.heads * x.values;
    return h;
}
