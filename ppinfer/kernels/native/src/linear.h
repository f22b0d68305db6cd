// bf16 matrix products in matrix registers, whose rows do not depend on their number.
//
// Weights are in panels of 16 outputs: (inputs / 2, 16 outputs, 2 inputs), inputs padded with zeros
// to a multiple of 32, and panels to an even number. An output is one chain of sums over 32 inputs.
#pragma once
#include "amx.h"

// What should stay in the second-level cache: rows of x, and beside them panels, in bytes.
static const long X_BYTES = 640 << 10, PANEL_BYTES = 320 << 10;

// Tiles for `count` rows, 32 at most: none is read or written past them.
INLINE void shape_tiles(int count) {
  TileShapes shapes;
  const uint8_t upper = count < 16 ? count : 16, lower = count > 16 ? count - 16 : 1;
  const uint8_t rows[8] = {upper, upper, lower, lower, upper, lower, 16, 16};
  for (int i = 0; i < 8; i++) {
    shapes.row_bytes[i] = 64;
    shapes.rows[i] = rows[i];
  }
  settle();
  _tile_loadconfig(&shapes);
}

// Asks for a tile that the turns of the loop after the next four need.
INLINE void prefetch_tile(const bf16 *tile) {
  for (int i = 0; i < 16; i++) prefetch(tile + 4 * 512 + i * 32);
}

// Two panels times 16 * HALVES rows from `x` on, `size` apart; sums into tiles 0 to 3.
template <int HALVES, bool FROM_MEMORY>
INLINE void multiply_panels(const bf16 *x, long size, const bf16 *one, const bf16 *two) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (long i = 0; i < size; i += 32) {
    _tile_loadd(4, x + i, size * 2);
    if (FROM_MEMORY) prefetch_tile(one + i * 16);
    _tile_loadd(6, one + i * 16, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (HALVES > 1) {
      _tile_loadd(5, x + 16 * size + i, size * 2);
      _tile_dpbf16ps(2, 5, 6);
    }
    if (FROM_MEMORY) prefetch_tile(two + i * 16);
    _tile_loadd(7, two + i * 16, 64);
    _tile_dpbf16ps(1, 4, 7);
    if (HALVES > 1) _tile_dpbf16ps(3, 5, 7);
  }
}

INLINE void store_both(bf16 *p, F low, F high) {
  _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(high.v, low.v));
}

// The last panels of a matrix whose outputs are no multiple of 32.
static void store_narrow(const float *sums, const bf16 *bias, bf16 *to, long stride, int rows, int width) {
  for (int i = 0; i < width; i += 16) {
    const int n = width - i < 16 ? width - i : 16;
    const F offset = bias ? load_some(bias + i, n) : zero();
    for (int r = 0; r < rows; r++) store_some(to + r * stride + i, load(sums + r * 32 + i) + offset, n);
  }
}

// Panels first to last (exclusive, pairs) of x (rows, size) into out (rows, outputs).
static void linear(const bf16 *x, const bf16 *panels, const bf16 *bias, bf16 *out, long rows, long size, long outputs,
                   long first, long last) {
  if (first >= last) return;
  alignas(64) float sums[32 * 32];
  int shaped_for = 0;
  const long most_rows = X_BYTES / (size * 64) > 0 ? X_BYTES / (size * 64) * 32 : 32;
  const long most_pairs = PANEL_BYTES / (size * 64) > 0 ? PANEL_BYTES / (size * 64) : 1;
  for (long from = 0; from < rows; from += most_rows) {
    const long end = from + most_rows < rows ? from + most_rows : rows;
    for (long begin = first; begin < last; begin += most_pairs) {
      const long stop = begin + most_pairs < last ? begin + most_pairs : last;
      for (long row = from; row < end; row += 32)
        for (long pair = begin; pair < stop; pair++) {
        const bf16 *one = panels + pair * 2 * 16 * size, *two = one + 16 * size;
        const int count = end - row < 32 ? (int)(end - row) : 32;
        if (count != shaped_for) shape_tiles(shaped_for = count);
        const bf16 *start = x + row * size;
        if (row > from) {  // after its first rows a pair is in cache
          if (count > 16) multiply_panels<2, false>(start, size, one, two);
          else multiply_panels<1, false>(start, size, one, two);
        } else if (count > 16) multiply_panels<2, true>(start, size, one, two);
        else multiply_panels<1, true>(start, size, one, two);
        _tile_stored(0, sums, 128);
        _tile_stored(1, sums + 16, 128);
        if (count > 16) {
          _tile_stored(2, sums + 16 * 32, 128);
          _tile_stored(3, sums + 16 * 32 + 16, 128);
        }
        const long at = pair * 32;
        const int width = outputs - at < 32 ? (int)(outputs - at) : 32;
        bf16 *to = out + row * outputs + at;
        if (width < 32) store_narrow(sums, bias ? bias + at : nullptr, to, outputs, count, width);
        else {
          const F low = bias ? load(bias + at) : zero(), high = bias ? load(bias + at + 16) : zero();
          for (int r = 0; r < count; r++)  // a line of the cache at a time
            store_both(to + r * outputs, load(sums + r * 32) + low, load(sums + r * 32 + 16) + high);
        }
        }
    }
  }
  end_tiles();
}

// One of `count` threads' share of the outputs.
static void linear_share(const bf16 *x, const bf16 *panels, const bf16 *bias, bf16 *out, long rows, long size,
                         long outputs, int thread, int count) {
  const long pairs = (outputs + 31) / 32;
  linear(x, panels, bias, out, rows, size, outputs, pairs * thread / count, pairs * (thread + 1) / count);
}
