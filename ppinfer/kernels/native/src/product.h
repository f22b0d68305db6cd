// fp32 matrix products, whose rows do not depend on their number.
//
// Weights are in panels of 16 outputs: (inputs, 16 outputs), the last ones filled up with zeros to a
// multiple of three panels. An output is one chain of fused sums over all inputs in their order.
#pragma once
#include "vector.h"

// A turn multiplies so many rows at most by so many panels.
#if defined(PPINFER_AVX2)
static const int TURN_ROWS = 6, TURN_PANELS = 1;  // 12 of 16 registers hold sums
#else
static const int TURN_ROWS = 8, TURN_PANELS = 3;  // 24 of 32
#endif
static const int PANELS_MULTIPLE = 3;
static const int BOUT = 8;                  // inputs between bouts of prefetching
static const long SOON = 40 * LANES;       // elements ahead in a panel that comes from memory
static const long X_BLOCK = 768 << 10;     // bytes of x that should stay in the second-level cache

// Lines of the cache to fetch after every bout of inputs, in each of TURN_PANELS panels from `at` on.
struct Ahead {
  const float *at;
  int lines;
};

template <int ROWS>
static void multiply_rows(const float *x, long size, const float *panels, const float *bias, float *out, long stride,
                          int width, Ahead ahead) {
  const long panel_size = size * LANES;
  F sums[ROWS][TURN_PANELS];
  UNROLL for (int r = 0; r < ROWS; r++)
    UNROLL for (int p = 0; p < TURN_PANELS; p++) sums[r][p] = zero();
  for (long from = 0; from < size; from += BOUT) {
    for (int i = 0; i < ahead.lines; i++, ahead.at += LANES)
      UNROLL for (int p = 0; p < TURN_PANELS; p++) prefetch(ahead.at + p * panel_size);
    const long end = from + BOUT < size ? from + BOUT : size;
    for (long i = from; i < end; i++, panels += LANES) {
      F weights[TURN_PANELS];
      UNROLL for (int p = 0; p < TURN_PANELS; p++) weights[p] = load(panels + p * panel_size);
      UNROLL for (int r = 0; r < ROWS; r++) {
        const F value = all(x[r * size + i]);
        UNROLL for (int p = 0; p < TURN_PANELS; p++) sums[r][p] = fma(value, weights[p], sums[r][p]);
      }
    }
  }
  UNROLL for (int p = 0; p < TURN_PANELS; p++) {
    const int at = p * LANES, some = width - at < LANES ? width - at : LANES;
    if (some <= 0) break;
    const F offset = !bias ? zero() : some < LANES ? load_some(bias + at, some) : load(bias + at);
    UNROLL for (int r = 0; r < ROWS; r++) {
      float *to = out + r * stride + at;
      if (some < LANES) store_some(to, sums[r][p] + offset, some);
      else store(to, sums[r][p] + offset);
    }
  }
}

template <int ROWS = TURN_ROWS, class... Rest> INLINE void multiply_some(int rows, Rest... rest) {
  if (rows == ROWS) multiply_rows<ROWS>(rest...);
  else if constexpr (ROWS > 1) multiply_some<ROWS - 1>(rows, rest...);
}

// All of x (rows, size) times TURN_PANELS panels, of which the first `width` outputs count.
static void multiply_turns(const float *x, long rows, long size, const float *panels, const float *bias, float *out,
                           long stride, int width) {
  const long turns = (rows + TURN_ROWS - 1) / TURN_ROWS, panel_size = size * LANES;
  for (long turn = 0; turn < turns; turn++) {
    const long row = rows * turn / turns, end = rows * (turn + 1) / turns;
    // A single turn waits for memory. Of several each fetches its share of the panels that follow,
    // so that memory is busy all the time and never waited for.
    const long first = BOUT * turn / turns, last = BOUT * (turn + 1) / turns;
    const Ahead ahead = turns == 1 ? Ahead{panels + SOON, BOUT}
                                   : Ahead{panels + TURN_PANELS * panel_size + first * panel_size / BOUT,
                                           (int)(last - first)};
    multiply_some((int)(end - row), x + row * size, size, panels, bias, out + row * stride, stride, width, ahead);
  }
}

// One of `count` threads' share of the outputs: x (rows, size) to out (rows, outputs).
static void linear_share(const float *x, const float *panels, const float *bias, float *out, long rows, long size,
                         long outputs, int thread, int count) {
  const long width = TURN_PANELS * LANES, groups = (outputs + width - 1) / width;
  const long blocks = (rows * size * 4 + X_BLOCK - 1) / X_BLOCK;
  for (long block = 0; block < blocks; block++) {
    const long row = rows * block / blocks, end = rows * (block + 1) / blocks;
    for (long i = groups * thread / count; i < groups * (thread + 1) / count; i++) {
      const long at = i * width, left = outputs - at;
      multiply_turns(x + row * size, end - row, size, panels + at * size, bias ? bias + at : nullptr,
                     out + row * outputs + at, outputs, (int)(left < width ? left : width));
    }
  }
}
