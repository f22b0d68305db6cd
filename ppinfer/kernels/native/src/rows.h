// What a layer does to each row of the stream, or each head of a token, by itself.
#pragma once
#include "step.h"
#include "vector.h"

INLINE F rounded(const float *, F x) { return x; }
INLINE F rounded(const bf16 *, F x) { return rounded_to_bf16(x); }

template <class E> INLINE F load_up_to(const E *p, int n) { return n >= LANES ? load(p) : load_some(p, n); }
template <class E> INLINE void store_up_to(E *p, F x, int n) {
  if (n >= LANES) store(p, x);
  else store_some(p, x, n);
}

// x divided by its root mean square, rounded, times the weight; x may be out.
template <class E> INLINE void norm_row(const E *x, const E *weight, E *out, int size, float eps) {
  F a = zero(), b = zero();
  int i = 0;
  for (; i + 2 * LANES <= size; i += 2 * LANES) {
    const F p = load(x + i), q = load(x + i + LANES);
    a = fma(p, p, a);
    b = fma(q, q, b);
  }
  for (; i < size; i += LANES) {
    const F p = load_up_to(x + i, size - i);
    a = fma(p, p, a);
  }
  const F scale = all(1.0f / __builtin_sqrtf(sum(a + b) / (float)size + eps));
  for (i = 0; i < size; i += LANES) {
    const F y = rounded(x, load_up_to(x + i, size - i) * scale);
    store_up_to(out + i, y * load_up_to(weight + i, size - i), size - i);
  }
}

template <class E> INLINE void add_row(E *x, const E *addend, int size) {
  for (int i = 0; i < size; i += LANES)
    store_up_to(x + i, load_up_to(x + i, size - i) + load_up_to(addend + i, size - i), size - i);
}

template <class E> static void add_rows(E *x, const E *addend, long first, long last, int size) {
  for (long r = first; r < last; r++) add_row(x + r * size, addend + r * size, size);
}

template <class E>
static void norm_rows(E *x, const E *addend, const E *weight, E *out, long first, long last, int size, float eps) {
  for (long r = first; r < last; r++) {
    if (addend) add_row(x + r * size, addend + r * size, size);
    norm_row(x + r * size, weight, out + r * size, size, eps);
  }
}

// silu(gate) * up; silu is rounded before.
template <class E> INLINE F gated(const E *type, F gate, F up) {
  const F e = exp(zero() - larger(all(-88.0f), gate));
  return rounded(type, gate / (all(1.0f) + e)) * up;
}

// The same of rows (2 * inner), the gate first.
template <class E> static void gate_rows(const E *gate_up, E *out, long first, long last, int inner) {
  for (long r = first; r < last; r++) {
    const E *gate = gate_up + r * 2 * inner, *up = gate + inner;
    for (int i = 0; i < inner; i += LANES) {
      const int n = inner - i;
      store_up_to(out + r * inner + i, gated(gate, load_up_to(gate + i, n), load_up_to(up + i, n)), n);
    }
  }
}

// Rotary position of one head in place: products and sum are rounded as the reference rounds them.
// cos and sin are (dim,), the first half of sin negated.
template <class E> INLINE void rotate_head(E *x, const E *cos, const E *sin, int dim) {
  const int half = dim / 2;
  for (int i = 0; i < half; i += LANES) {
    const int n = half - i;
    const F a = load_up_to(x + i, n), b = load_up_to(x + half + i, n);
    const F p = rounded(x, a * load_up_to(cos + i, n)) + rounded(x, b * load_up_to(sin + i, n));
    const F q = rounded(x, b * load_up_to(cos + half + i, n)) + rounded(x, a * load_up_to(sin + half + i, n));
    store_up_to(x + i, p, n);
    store_up_to(x + half + i, q, n);
  }
}

INLINE void store_key(const float *k, float *run, int inside, int dim) {
  for (int i = 0; i < dim; i++) run[i * 16 + inside] = k[i];
}
INLINE void store_key(const bf16 *k, bf16 *run, int inside, int dim) {
  for (int i = 0; i < dim / 2; i++) memcpy(run + (i * 16 + inside) * 2, k + 2 * i, 4);
}
INLINE void store_value(const float *v, float *run, int inside, int dim) { memcpy(run + inside * dim, v, dim * 4); }
INLINE void store_value(const bf16 *v, bf16 *run, int inside, int dim) {
  bf16 *to = run + inside / 2 * dim * 2 + inside % 2;
  for (int i = 0; i < dim; i++) to[2 * i] = v[i];
}

// Tokens first to last (exclusive) of a step: norm and rotate queries and keys in place where asked
// to, and store keys and values in the cache. A run that this step begins is cleared behind the
// step's last token, so that what an earlier owner left there cannot spoil a sum as NaN times 0.
template <class E>
static void store_tokens(const Step &s, const Layer &layer, E *q, E *k, const E *v, long stride, const E *cos,
                         const E *sin, E *k_pool, E *v_pool, int first, int last) {
  const int dim = s.head_dim;
  int seq = 0;
  for (int token = first; token < last; token++) {
    while (token >= s.offsets[seq] + s.lengths[seq]) seq++;
    const int position = s.starts[seq] + token - s.offsets[seq], inside = position % 16;
    const long block = s.tables[s.table_starts[seq] + (position >> s.block_shift)];
    const long run_in_block = (position & (s.block_size - 1)) / 16, run_size = 16L * dim;
    const bool is_last = token == s.offsets[seq] + s.lengths[seq] - 1;
    const bool clear = is_last && inside < 15 && position - inside >= s.starts[seq];
    if (q)
      for (int h = 0; h < s.kv_heads * s.group; h++) {
        E *x = q + token * stride + h * dim;
        if (layer.q_norm) norm_row(x, (const E *)layer.q_norm, x, dim, layer.eps);
        rotate_head(x, cos + (long)position * dim, sin + (long)position * dim, dim);
      }
    for (int h = 0; h < s.kv_heads; h++) {
      E *x = k + token * stride + h * dim;
      if (q && layer.k_norm) norm_row(x, (const E *)layer.k_norm, x, dim, layer.eps);
      if (q) rotate_head(x, cos + (long)position * dim, sin + (long)position * dim, dim);
      const long run = ((block * s.kv_heads + h) * (s.block_size / 16) + run_in_block) * run_size;
      store_key(x, k_pool + run, inside, dim);
      store_value(v + token * stride + h * dim, v_pool + run, inside, dim);
      if (clear) {
        E zeros[256] = {};
        for (int i = inside + 1; i < 16; i++) {
          store_key(zeros, k_pool + run, i, dim);
          store_value(zeros, v_pool + run, i, dim);
        }
      }
    }
  }
}

