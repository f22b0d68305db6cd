// The index of the greatest element of a row; of equal ones the first.
#pragma once
#include <stdint.h>

static const int ARGMAX_BLOCK = 1024;

// Floats as integers in the same order: so whole vectors are compared without a thought of NaN.
static inline int32_t float_bits(const float *row, long i) {
  const float x = row[i] + 0.0f;  // no negative zero
  int32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return bits;
}

static inline int32_t float_bits(const uint16_t *row, long i) {
  const int32_t bits = (int32_t)((uint32_t)row[i] << 16);
  return bits == INT32_MIN ? 0 : bits;
}

static inline int32_t ordered(int32_t bits) { return bits ^ ((bits >> 31) & 0x7fffffff); }

// -1 where there is a NaN.
template <class T>
__attribute__((optimize("O3"), noinline)) static int32_t argmax(const T *row, long size) {
  int32_t most = INT32_MIN;
  long block = 0;
  int32_t largest = 0;  // of the bits without sign
  for (long begin = 0; begin < size; begin += ARGMAX_BLOCK) {
    const long end = begin + ARGMAX_BLOCK < size ? begin + ARGMAX_BLOCK : size;
    int32_t best = INT32_MIN;
    for (long i = begin; i < end; i++) {
      const int32_t bits = float_bits(row, i), key = ordered(bits), magnitude = bits & 0x7fffffff;
      best = best > key ? best : key;
      largest = largest > magnitude ? largest : magnitude;
    }
    if (best > most) {
      most = best;
      block = begin;
    }
  }
  if (largest > 0x7f800000) return -1;
  while (ordered(float_bits(row, block)) != most) block++;
  return (int32_t)block;
}
