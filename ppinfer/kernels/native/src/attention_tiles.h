// The two products of bf16 attention in matrix registers, for head sizes of whole runs of 16.
#pragma once
#include "amx.h"
#include "attention_products.h"

// Registers: 0 to 3 sums (rows of 16 fp32); 4 and 5 rows of 32 and of 16 bf16 from the left; 6 and 7
// sixteen and eight rows of 16 words from the cache. With few rows, loads and products take less.
INLINE void shape_attention_tiles(int rows) {
  TileShapes shapes;
  for (int i = 0; i < 8; i++) {
    shapes.row_bytes[i] = i == 5 ? 32 : 64;
    shapes.rows[i] = i == 7 ? 8 : i == 6 ? 16 : rows;
  }
  _tile_loadconfig(&shapes);
}

// Asks for `lines` lines of runs to come.
INLINE void ask_for_lines(const word *const *run, int from, int lines) {
  for (int i = 0; i < lines; i++) {
    prefetch_soon(run[NEAR] + from + 16 * i);
    prefetch(run[FAR] + from + 16 * i);
  }
}

// Scores of HALVES times up to 16 rows of queries against runs of keys.
template <int HALVES>
INLINE void tile_scores(const bf16 *q, int dim, const word *const *keys, int runs, float *scores,
                        int scores_stride) {
  const long q_stride = dim * 2, s_stride = scores_stride * 4;
  settle();
  for (int run = 0; run < runs; run++) {
    const word *from = keys[run];
    _tile_zero(0);
    if (HALVES > 1) _tile_zero(1);
    int d = 0;
    for (; d + 32 <= dim; d += 32) {
      ask_for_lines(keys + run, d * 8, 16);
      _tile_loadd(6, from + d * 8, 64);
      _tile_loadd(4, q + d, q_stride);
      _tile_dpbf16ps(0, 4, 6);
      if (HALVES > 1) {
        _tile_loadd(4, q + 16 * dim + d, q_stride);
        _tile_dpbf16ps(1, 4, 6);
      }
    }
    if (d < dim) {
      ask_for_lines(keys + run, d * 8, 8);
      _tile_loadd(7, from + d * 8, 64);
      _tile_loadd(5, q + d, q_stride);
      _tile_dpbf16ps(0, 5, 7);
      if (HALVES > 1) {
        _tile_loadd(5, q + 16 * dim + d, q_stride);
        _tile_dpbf16ps(1, 5, 7);
      }
    }
    _tile_stored(0, scores + run * 16, s_stride);
    if (HALVES > 1) _tile_stored(1, scores + 16 * scores_stride + run * 16, s_stride);
  }
}

// Register N of sums; intrinsics take numbers only.
template <int N> struct Sums;
#define TILE_OF_SUMS(N)                                                                       \
  template <> struct Sums<N> {                                                        \
    INLINE void zero() { _tile_zero(N); }                                             \
    INLINE void load(const float *p, long stride) { _tile_loadd(N, p, stride); }      \
    INLINE void store(float *p, long stride) { _tile_stored(N, p, stride); }          \
    INLINE void add_product() { _tile_dpbf16ps(N, 5, 7); }                            \
  }
TILE_OF_SUMS(0);
TILE_OF_SUMS(1);
TILE_OF_SUMS(2);
TILE_OF_SUMS(3);
#undef TILE_OF_SUMS

template <int FIRST, int COUNT> INLINE void load_sums(const float *p, long stride) {
  Sums<FIRST>::load(p, stride);
  if constexpr (COUNT > 1) load_sums<FIRST + 1, COUNT - 1>(p + 16, stride);
}
template <int COUNT> INLINE void zero_sums() {
  Sums<COUNT - 1>::zero();
  if constexpr (COUNT > 1) zero_sums<COUNT - 1>();
}
template <int FIRST, int COUNT> INLINE void store_sums(float *p, long stride) {
  Sums<FIRST>::store(p, stride);
  if constexpr (COUNT > 1) store_sums<FIRST + 1, COUNT - 1>(p + 16, stride);
}
// Adds the weights in register 5 times values of COUNT times 16 dimensions.
template <int FIRST, int COUNT> INLINE void add_products(const word *values, long stride) {
  _tile_loadd(7, values, stride);
  Sums<FIRST>::add_product();
  if constexpr (COUNT > 1) add_products<FIRST + 1, COUNT - 1>(values + 16, stride);
}

// Adds weights times values to 16 * COUNT dimensions, from `d` on, of HALVES times up to 16 results;
// the first group finds none.
template <int HALVES, int COUNT>
static void tile_mix_some(const bf16 *weights, int weights_stride, const word *const *values, int runs, int dim, int d,
                          bool first, float *out) {
  const long w_stride = weights_stride * 2, stride = dim * 4;
  float *second = out + 16 * dim;
  if (first) {
    zero_sums<HALVES * COUNT>();
  } else {
    load_sums<0, COUNT>(out + d, stride);
    if constexpr (HALVES > 1) load_sums<COUNT, COUNT>(second + d, stride);
  }
  for (int run = 0; run < runs; run++) {
    const bf16 *from = weights + run * 16;
    for (int i = 0; i < 8; i++) ask_for_lines(values + run, i * dim + d, COUNT);
    _tile_loadd(5, from, w_stride);
    add_products<0, COUNT>(values[run] + d, stride);
    if constexpr (HALVES > 1) {
      _tile_loadd(5, from + 16 * weights_stride, w_stride);
      add_products<COUNT, COUNT>(values[run] + d, stride);
    }
  }
  store_sums<0, COUNT>(out + d, stride);
  if constexpr (HALVES > 1) store_sums<COUNT, COUNT>(second + d, stride);
}

template <int HALVES>
INLINE void tile_mix(const bf16 *weights, int weights_stride, const word *const *values, int runs, int dim,
                     bool first, float *out) {
  settle();
  int d = 0;
  if constexpr (HALVES == 1) {
    for (; d + 64 <= dim; d += 64) tile_mix_some<1, 4>(weights, weights_stride, values, runs, dim, d, first, out);
  }
  for (; d + 32 <= dim; d += 32) tile_mix_some<HALVES, 2>(weights, weights_stride, values, runs, dim, d, first, out);
  if (d < dim) tile_mix_some<HALVES, 1>(weights, weights_stride, values, runs, dim, d, first, out);
}
