// The two products of attention in vector registers: queries with keys, weights with values.
//
// An element is its own chain of multiply-adds in ascending order, whatever the shape of the
// micro-kernel that it is computed in.
#pragma once
#include "vector.h"

static const int RUN = 16, GROUP = 128, RUNS = GROUP / RUN;  // tokens that lie, are weighed together
// Runs are asked for twice: from memory FAR runs ahead, from the second-level cache NEAR.
static const int NEAR = 1, FAR = 8;

// fp32 and bf16 as the micro-kernels see them: `Left` is how a row of queries or weights is stored.
struct Fp32 {
  typedef float Element;
  typedef float Left;
  static const int PER_WORD = 1, ROWS = MAX_ROWS;
  struct Words1 { F x; };
  INLINE Words1 words(const word *p) { return {as_floats(load_words(p))}; }
  INLINE Words1 repeat(const Left *p, int i) { return {all(p[i])}; }
  INLINE F mac(Words1 a, Words1 b, F c) { return fma(a.x, b.x, c); }
  INLINE F weight(F x) { return exp2(x); }
};

struct Bf16 {
  typedef bf16 Element;
  static const int PER_WORD = 2;
#if defined(PPINFER_AMX)
  static const int ROWS = 2;  // for odd head sizes only
#else
  static const int ROWS = MAX_ROWS;
#endif
  INLINE F weight(F x) { return rough_exp2(x); }
#if defined(PPINFER_AVX512BF16)
  typedef bf16 Left;
  struct Words2 { __m512bh x; };
  INLINE Words2 words(const word *p) { return {(__m512bh)_mm512_loadu_si512(p)}; }
  INLINE Words2 repeat(const Left *p, int i) {
    int pair;
    memcpy(&pair, p + 2 * i, 4);
    return {(__m512bh)_mm512_set1_epi32(pair)};
  }
  INLINE F mac(Words2 a, Words2 b, F c) { return {_mm512_dpbf16_ps(c.v, a.x, b.x)}; }
#else
  typedef float Left;
  struct Words2 { F low, high; };
  INLINE Words2 words(const word *p) {
    const Words w = load_words(p);
    return {low_halves(w), high_halves(w)};
  }
  INLINE Words2 repeat(const Left *p, int i) { return {all(p[2 * i]), all(p[2 * i + 1])}; }
  INLINE F mac(Words2 a, Words2 b, F c) { return fma(a.high, b.high, fma(a.low, b.low, c)); }
#endif
};

// R rows of queries against V runs of keys: sums (R, V * 16), `GROUP` apart.
template <class T, int R, int V>
static void multiply_keys(const typename T::Left *q, int dim, const word *const *keys, float *scores) {
  F sums[R][V];
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int v = 0; v < V; v++) sums[r][v] = zero();
  const int steps = dim / T::PER_WORD;
  for (int i = 0; i < steps; i++) {
    decltype(T::words((const word *)0)) k[V];
    UNROLL for (int v = 0; v < V; v++) {
      k[v] = T::words(keys[v] + 16 * i);
      prefetch_soon(keys[v + V] + 16 * i);
      prefetch(keys[v + FAR] + 16 * i);
    }
    UNROLL for (int r = 0; r < R; r++) {
      const auto a = T::repeat(q + (long)r * dim, i);
      UNROLL for (int v = 0; v < V; v++) sums[r][v] = T::mac(a, k[v], sums[r][v]);
    }
  }
  UNROLL for (int r = 0; r < R; r++)
    UNROLL for (int v = 0; v < V; v++) store(scores + r * GROUP + 16 * v, sums[r][v]);
}

// Adds to R rows of results (there are none before the first), V * 16 dimensions from `at` on:
// weights of `runs` runs times values, which lie in the cache, or in copies whose rows are `width` long.
template <class T, int R, int V>
static void multiply_values(const typename T::Left *weights, const word *const *values,
                            const word *const *cached, int runs, int dim, int at, int width, bool first,
                            float *out) {
  const int stride = GROUP * sizeof(float) / sizeof *weights;
  F sums[R][V];
  UNROLL for (int r = 0; r < R; r++)
    UNROLL for (int v = 0; v < V; v++) sums[r][v] = first ? zero() : load(out + r * width + at + 16 * v);
  for (int run = 0; run < runs; run++) {
    const word *from = values[run] + at;
    long ask = at;
    for (int i = 0; i < RUN / T::PER_WORD; i++, from += width, ask += dim) {
      decltype(T::words((const word *)0)) x[V];
      UNROLL for (int v = 0; v < V; v++) {
        x[v] = T::words(from + 16 * v);
        prefetch_soon(cached[run + NEAR] + ask + 16 * v);
        prefetch(cached[run + FAR] + ask + 16 * v);
      }
      UNROLL for (int r = 0; r < R; r++) {
        const auto a = T::repeat(weights + r * stride + RUN * run, i);
        UNROLL for (int v = 0; v < V; v++) sums[r][v] = T::mac(a, x[v], sums[r][v]);
      }
    }
  }
  UNROLL for (int r = 0; r < R; r++)
    UNROLL for (int v = 0; v < V; v++) store(out + r * width + at + 16 * v, sums[r][v]);
}

// Micro-kernels of 1, 2, 3, 4 and 8 rows, by as many vectors as there are registers for.
template <class T> struct Kernels {
  typedef typename T::Left Left;
  typedef void (*Keys)(const Left *, int, const word *const *, float *);
  typedef void (*Values)(const Left *, const word *const *, const word *const *, int, int, int, int, bool, float *);
  Keys keys[T::ROWS][MAX_VECTORS];
  Values values[T::ROWS][MAX_VECTORS];

  static constexpr int rows_of(int left) {
    const int most = left < T::ROWS ? left : T::ROWS;
    return most >= 8 ? 8 : most < 4 ? most : 4;
  }
  static constexpr int vectors_of(int rows) { return MAX_SUMS / rows < MAX_VECTORS ? MAX_SUMS / rows : MAX_VECTORS; }
  template <int R, int V> constexpr void fill() {
    keys[R - 1][V - 1] = multiply_keys<T, R, V>;
    values[R - 1][V - 1] = multiply_values<T, R, V>;
    if constexpr (V > 1) fill<R, V - 1>();
    else if constexpr (R > 1) fill<rows_of(R - 1), vectors_of(rows_of(R - 1))>();
  }
  constexpr Kernels() : keys(), values() { fill<rows_of(T::ROWS), vectors_of(rows_of(T::ROWS))>(); }
};
