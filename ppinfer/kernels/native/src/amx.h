// The two products of bf16 attention in matrix registers (AMX), for head sizes of whole runs of 16.
//
// A tile register's element is one chain of sums over a run of 16 tokens or 32 (16) dimensions,
// whatever the number of rows beside it, so a row's bits are its own here too.
#pragma once
#include "vector.h"
#include <sys/syscall.h>
#include <unistd.h>

// Registers: 0 to 3 sums (16 rows of 16 fp32); 4 and 5 rows of 32 and of 16 bf16 from the left;
// 6 and 7 sixteen and eight rows of 16 words from the cache.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 32, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 8};
};

INLINE bool allow_tiles() { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }  // ARCH_REQ_XCOMP_PERM
INLINE void begin_tiles() {
  const TileShapes shapes;
  _tile_loadconfig(&shapes);
}
INLINE void end_tiles() { _tile_release(); }
INLINE void settle() { __asm__ volatile("" ::: "memory"); }  // tile loads do not say that they read

INLINE void prefetch_rows(const word *p, long stride, int rows) {
  for (int i = 0; i < rows; i++) prefetch(p + i * stride);
}

// Scores of 16 * `halves` rows of queries against runs of keys.
INLINE void tile_scores(const bf16 *q, int dim, int halves, const word *const *keys, const word *const *ahead,
                        int runs, float *scores, int scores_stride) {
  const long q_stride = dim * 2, s_stride = scores_stride * 4;
  settle();
  for (int run = 0; run < runs; run += 2) {
    const bool pair = run + 1 < runs;
    const word *one = keys[run], *two = keys[pair ? run + 1 : run];
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    int d = 0;
    for (; d + 32 <= dim; d += 32) {
      _tile_loadd(6, one + d * 8, 64);
      if (halves > 1) {
        _tile_loadd(4, q + 16 * dim + d, q_stride);
        _tile_dpbf16ps(2, 4, 6);
      }
      _tile_loadd(4, q + d, q_stride);
      _tile_dpbf16ps(0, 4, 6);
      if (halves == 1) prefetch_rows(ahead[run] + d * 8, 16, 16);
      if (pair) {
        _tile_loadd(6, two + d * 8, 64);
        _tile_dpbf16ps(1, 4, 6);
        if (halves > 1) {
          _tile_loadd(4, q + 16 * dim + d, q_stride);
          _tile_dpbf16ps(3, 4, 6);
        } else {
          prefetch_rows(ahead[run + 1] + d * 8, 16, 16);
        }
      }
    }
    if (d < dim) {
      _tile_loadd(7, one + d * 8, 64);
      if (halves > 1) {
        _tile_loadd(5, q + 16 * dim + d, q_stride);
        _tile_dpbf16ps(2, 5, 7);
      }
      _tile_loadd(5, q + d, q_stride);
      _tile_dpbf16ps(0, 5, 7);
      if (halves == 1) prefetch_rows(ahead[run] + d * 8, 16, 8);
      if (pair) {
        _tile_loadd(7, two + d * 8, 64);
        _tile_dpbf16ps(1, 5, 7);
        if (halves > 1) {
          _tile_loadd(5, q + 16 * dim + d, q_stride);
          _tile_dpbf16ps(3, 5, 7);
        } else {
          prefetch_rows(ahead[run + 1] + d * 8, 16, 8);
        }
      }
    }
    float *to = scores + run * 16;
    _tile_stored(0, to, s_stride);
    if (pair) _tile_stored(1, to + 16, s_stride);
    if (halves > 1) {
      _tile_stored(2, to + 16 * scores_stride, s_stride);
      if (pair) _tile_stored(3, to + 16 * scores_stride + 16, s_stride);
    }
  }
}

// Adds weights times values to 16 * `halves` rows of results.
INLINE void tile_mix(const bf16 *weights, int weights_stride, int halves, const word *const *values,
                     const word *const *ahead, int runs, int dim, float *out) {
  const long w_stride = weights_stride * 2, stride = dim * 4;
  settle();
  for (int d = 0; d < dim; d += 32) {
    const bool pair = d + 16 < dim;
    float *first = out + d, *second = out + 16 * dim + d;
    _tile_loadd(0, first, stride);
    if (pair) _tile_loadd(1, first + 16, stride);
    if (halves > 1) {
      _tile_loadd(2, second, stride);
      if (pair) _tile_loadd(3, second + 16, stride);
    }
    for (int run = 0; run < runs; run++) {
      const bf16 *from = weights + run * 16;
      const word *v = values[run] + d, *later = ahead[run] + d;
      _tile_loadd(7, v, stride);
      if (halves > 1) {
        _tile_loadd(5, from + 16 * weights_stride, w_stride);
        _tile_dpbf16ps(2, 5, 7);
      }
      _tile_loadd(5, from, w_stride);
      _tile_dpbf16ps(0, 5, 7);
      if (halves == 1) prefetch_rows(later, dim, 8);
      if (pair) {
        _tile_loadd(7, v + 16, stride);
        _tile_dpbf16ps(1, 5, 7);
        if (halves > 1) {
          _tile_loadd(5, from + 16 * weights_stride, w_stride);
          _tile_dpbf16ps(3, 5, 7);
        } else {
          prefetch_rows(later + 16, dim, 8);
        }
      }
    }
    _tile_stored(0, first, stride);
    if (pair) _tile_stored(1, first + 16, stride);
    if (halves > 1) {
      _tile_stored(2, second, stride);
      if (pair) _tile_stored(3, second + 16, stride);
    }
  }
}
