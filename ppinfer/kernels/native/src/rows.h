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
