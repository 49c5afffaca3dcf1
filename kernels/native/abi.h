/* The plain C interface of the native scan: pointers, sizes, and nothing of torch or Python.
 *
 * Every tensor is contiguous and of one type, `width` bytes a number: 4 (float) or 8 (double). Letters as in ops.py:
 *   q, k, g, erase [B,T,H,K];  value, write, o, u [B,T,H,V];  mask [B,T];  states [N,H,K,V];  offsets [N+1] or null.
 * With `write` null, erase is e and value is z; otherwise they are b and v, e = m b k and z = m w v.
 * u_t = z_t - S_t'^T e_t (S' decayed) is what the forward wrote; with one state every CHUNK tokens it is all that the
 * backward needs to make the other states again.
 * Gradients of q, k, erase and g are [parts,B,T,H,K], parts = ceil(V / columns), to be summed by the caller.
 */
#ifndef TSGDN2_NATIVE_ABI_H
#define TSGDN2_NATIVE_ABI_H

#include <stdint.h>

enum { TSGDN2_ABI = 1 };
enum { TSGDN2_CHUNK = 16 };   /* tokens between two kept states */
enum { TSGDN2_COLUMNS = 32 }; /* columns of V whose gradients are summed together, whoever does it */
enum { TSGDN2_DONE = 0, TSGDN2_NO_MEMORY = 1, TSGDN2_BAD_ARGUMENT = 2 };

typedef struct {
    int64_t sequences, tokens, heads, keys, values; /* tokens of a sequence, or of all when offsets are given */
    int64_t width, threads, columns; /* of V in one item of work: TSGDN2_COLUMNS, or all */
    double scale;
    const int64_t *offsets;
    const void *q, *k, *erase, *value, *write, *g, *mask, *initial;
    void *o, *final, *u, *checkpoints; /* u and checkpoints null: nothing is kept for a backward */
    const void *d_o, *d_final;
    void *dq, *dk, *d_erase, *d_value, *d_write, *dg, *d_initial;
} tsgdn2_scan;

typedef struct {
    int64_t rows, heads, keys, values, width, threads;
    double scale;
    const int64_t *slots; /* [rows], distinct rows of the pool */
    const void *q, *k, *erase, *value, *write, *g, *mask;
    void *pool, *o; /* [S,H,K,V] changed in place; [rows,H,V] */
} tsgdn2_step;

#ifdef __cplusplus
extern "C" {
#endif

int tsgdn2_abi(void);
const char *tsgdn2_targets(void);             /* what this machine can run, best first, separated by blanks */
int tsgdn2_forward(const tsgdn2_scan *scan, const char *target);
int tsgdn2_backward(const tsgdn2_scan *scan, const char *target);
int tsgdn2_advance(const tsgdn2_step *step, const char *target);

#ifdef __cplusplus
}
#endif
#endif
