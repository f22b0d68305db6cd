// bf16 matrix products in vector registers (see linear.h): sums over 2 inputs at a time.
#pragma once
#include "pairs.h"

static const int MOST_ROWS = 12;     // that are multiplied together: 24 of 32 registers hold sums
static const long SOON_BYTES = 2048; // ahead in a panel that comes from memory

// ROWS rows from `x` on, `size` apart, times a pair of panels; sums to (ROWS, 32).
template <int ROWS>
static void multiply_pair(const bf16 *x, long size, const bf16 *one, const bf16 *two, bool from_memory, float *sums) {
  __m512 low[ROWS], high[ROWS];
  UNROLL_ROWS for (int r = 0; r < ROWS; r++) low[r] = high[r] = _mm512_setzero_ps();
  for (long i = 0; i < size; i += 2) {
    const bf16 *first = one + i * 16, *second = two + i * 16;
    if (from_memory) {
      prefetch_soon((const char *)first + SOON_BYTES);
      prefetch_soon((const char *)second + SOON_BYTES);
    }
    const __m512bh a = (__m512bh)_mm512_loadu_si512(first), b = (__m512bh)_mm512_loadu_si512(second);
    UNROLL_ROWS for (int r = 0; r < ROWS; r++) {
      int32_t pair;
      memcpy(&pair, x + r * size + i, 4);
      const __m512bh values = (__m512bh)_mm512_set1_epi32(pair);
      low[r] = _mm512_dpbf16_ps(low[r], values, a);
      high[r] = _mm512_dpbf16_ps(high[r], values, b);
    }
  }
  UNROLL_ROWS for (int r = 0; r < ROWS; r++) {
    _mm512_store_ps(sums + r * 32, low[r]);
    _mm512_store_ps(sums + r * 32 + 16, high[r]);
  }
}

template <int ROWS = MOST_ROWS, class... Rest> INLINE void multiply_pair_of(int rows, Rest... rest) {
  if (rows == ROWS) multiply_pair<ROWS>(rest...);
  else if constexpr (ROWS > 1) multiply_pair_of<ROWS - 1>(rows, rest...);
}

// Pairs first to last (exclusive) of panels times x (rows, size).
template <class Store>
static void multiply(const bf16 *x, long rows, long size, const Pairs &pairs, long first, long last,
                     const Store &store) {
  alignas(64) float sums[MOST_ROWS * 32];
  const long blocks = (rows * size * 2 + X_BYTES - 1) / X_BYTES;
  for (long block = 0; block < blocks; block++) {
    const long from = rows * block / blocks, end = rows * (block + 1) / blocks;
    const long turns = (end - from + MOST_ROWS - 1) / MOST_ROWS;
    for (long pair = first; pair < last; pair++) {
      const bf16 *one = pairs.first + pair * pairs.step, *two = one + pairs.apart;
      for (long turn = 0; turn < turns; turn++) {
        const long row = from + (end - from) * turn / turns, stop = from + (end - from) * (turn + 1) / turns;
        multiply_pair_of((int)(stop - row), x + row * size, size, one, two, turn == 0, sums);
        for (long r = row; r < stop; r++) store(sums + (r - row) * 32, r, pair);
      }
    }
  }
}
