// How bf16 products (see linear.h) find their panels, and what becomes of their sums.
#pragma once
#include "rows.h"

static const long X_BYTES = 640 << 10;  // rows of x that should stay in the second-level cache

// Which panels are multiplied together: from pair to pair it is `step` elements, from the first panel
// of a pair to the second `apart`.
struct Pairs {
  const bf16 *first;
  long step, apart;
};

// What becomes of a row of 32 sums: an output each.
struct StoreBoth {
  const bf16 *bias;
  bf16 *out;
  long outputs;

  INLINE void part(const float *sums, const bf16 *bias, bf16 *to, int n) {
    const F x = load(sums);
    store_up_to(to, bias ? x + load_up_to(bias, n) : x + zero(), n);
  }
  INLINE_MEMBER void operator()(const float *sums, long row, long pair) const {
    const long at = pair * 32;
    bf16 *to = out + row * outputs + at;
    if (outputs - at >= 32) {
      const F low = bias ? load(bias + at) : zero(), high = bias ? load(bias + at + 16) : zero();
      _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh((load(sums + 16) + high).v, (load(sums) + low).v));
      return;
    }
    part(sums, bias ? bias + at : nullptr, to, (int)(outputs - at));
    if (outputs - at > 16) part(sums + 16, bias ? bias + at + 16 : nullptr, to + 16, (int)(outputs - at - 16));
  }
};

// Or 16 gates and their 16 values, which become 16 outputs (see gate_rows).
struct StoreGated {
  const bf16 *bias;
  bf16 *out;
  long inner;

  INLINE_MEMBER void operator()(const float *sums, long row, long pair) const {
    const long at = pair * 16;
    F gate = load(sums), up = load(sums + 16);
    if (bias) {
      gate = gate + load(bias + at);
      up = up + load(bias + inner + at);
    }
    store(out + row * inner + at, gated(out, rounded(out, gate), rounded(out, up)));
  }
};
