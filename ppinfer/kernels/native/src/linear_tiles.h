// bf16 matrix products in matrix registers (see linear.h): sums over 32 inputs at a time.
#pragma once
#include "amx.h"
#include "pairs.h"

static const long PANEL_BYTES = 320 << 10;  // beside the rows in the second-level cache
static const long AHEAD = 4;  // turns of 32 inputs between asking for a tile and needing it

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

// Sums of 32 rows and a pair of panels, stored while the next ones are multiplied: vector and matrix
// registers work side by side.
template <class Store> struct Unstored {
  const Store &store;
  alignas(64) float sums[32 * 32];
  long row = 0, pair = 0;
  int next = 0, count = 0;

  INLINE_MEMBER void some(int rows) {
    for (const int end = next + rows < count ? next + rows : count; next < end; next++)
      store(sums + next * 32, row + next, pair);
  }
  INLINE_MEMBER void take(long of_row, long of_pair, int rows) {
    some(32);
    _tile_stored(0, sums, 128);
    _tile_stored(1, sums + 16, 128);
    if (rows > 16) {
      _tile_stored(2, sums + 16 * 32, 128);
      _tile_stored(3, sums + 16 * 32 + 16, 128);
    }
    settle();
    row = of_row, pair = of_pair, next = 0, count = rows;
  }
};

INLINE void prefetch_tile(const bf16 *tile) {
  for (int i = 0; i < 16; i++) prefetch(tile + i * 32);
}

// A pair of panels times 16 * HALVES rows from `x` on, `size` apart; sums into tiles 0 to 3. Panels
// that come from memory are asked for some turns ahead, at the end of a pair those of the next.
template <int HALVES, bool FROM_MEMORY, class Store>
INLINE void multiply_pair(const bf16 *x, long size, const Pairs &pairs, long pair, Unstored<Store> &unstored) {
  const bf16 *one = pairs.first + pair * pairs.step, *two = one + pairs.apart;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (long i = 0; i < size; i += 32) {
    const long later = i + AHEAD * 32, ahead = later < size ? later * 16 : (later - size) * 16 + pairs.step;
    _tile_loadd(4, x + i, size * 2);
    if (FROM_MEMORY) prefetch_tile(one + ahead);
    _tile_loadd(6, one + i * 16, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (HALVES > 1) {
      _tile_loadd(5, x + 16 * size + i, size * 2);
      _tile_dpbf16ps(2, 5, 6);
    }
    if (FROM_MEMORY) prefetch_tile(two + ahead);
    _tile_loadd(7, two + i * 16, 64);
    _tile_dpbf16ps(1, 4, 7);
    if (HALVES > 1) _tile_dpbf16ps(3, 5, 7);
    unstored.some(2);
  }
}

// Pairs first to last (exclusive) of panels times x (rows, size).
template <class Store>
static void multiply(const bf16 *x, long rows, long size, const Pairs &pairs, long first, long last,
                     const Store &store) {
  if (first >= last) return;
  Unstored<Store> unstored{store};
  int shaped_for = 0;
  const long most_rows = X_BYTES / (size * 64) > 0 ? X_BYTES / (size * 64) * 32 : 32;
  const long most_pairs = PANEL_BYTES / (size * 64) > 0 ? PANEL_BYTES / (size * 64) : 1;
  for (long from = 0; from < rows; from += most_rows) {
    const long end = from + most_rows < rows ? from + most_rows : rows;
    for (long begin = first; begin < last; begin += most_pairs) {
      const long stop = begin + most_pairs < last ? begin + most_pairs : last;
      for (long row = from; row < end; row += 32) {
        const int count = end - row < 32 ? (int)(end - row) : 32;
        if (count != shaped_for) shape_tiles(shaped_for = count);
        const bool is_new = row == from;  // after its first rows a pair is in cache
        for (long pair = begin; pair < stop; pair++) {
          const bf16 *start = x + row * size;
          if (count > 16) {
            if (is_new) multiply_pair<2, true>(start, size, pairs, pair, unstored);
            else multiply_pair<2, false>(start, size, pairs, pair, unstored);
          } else {
            if (is_new) multiply_pair<1, true>(start, size, pairs, pair, unstored);
            else multiply_pair<1, false>(start, size, pairs, pair, unstored);
          }
          unstored.take(row, pair, count);
        }
      }
    }
  }
  unstored.some(32);
  end_tiles();
}
