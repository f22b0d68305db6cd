// A row of logits as draws look at it: in blocks that are skipped together, in doubles, and its
// likeliest tokens.
#pragma once
#include "argmax.h"
#include "vector.h"
#include <vector>

typedef double doubles __attribute__((vector_size(64)));
typedef int64_t longs __attribute__((vector_size(64)));
typedef int32_t ints8 __attribute__((vector_size(32)));
typedef float floats8 __attribute__((vector_size(32)));

static const int BLOCK = 64, WIDTH = 8;  // tokens that are skipped together; worked on together

INLINE doubles widened(const float *p) {
#if defined(PPINFER_AVX512BF16) || defined(PPINFER_AVX512)
  return (doubles)_mm512_cvtps_pd(_mm256_loadu_ps(p));  // the compiler makes five instructions of it
#else
  floats8 x;
  memcpy(&x, p, sizeof x);
  return __builtin_convertvector(x, doubles);
#endif
}
// A row in blocks, the last filled up with minus infinity, and the greatest element of each.
struct Row {
  const float *x;
  long size, blocks, ties_block = -1;  // which block `ties` stands for
  float tail[BLOCK], ties[BLOCK];
  std::vector<float> most;

  Row(const float *x, long size) : x(x), size(size), blocks((size + BLOCK - 1) / BLOCK), most(blocks) {
    for (long i = 0; i < BLOCK; i++) tail[i] = -__builtin_inff();
    const long whole = size / BLOCK * BLOCK;
    memcpy(tail, x + whole, (size - whole) * sizeof(float));
    for (long b = 0; b < blocks; b++) {
      const float *p = block(b);
      F m = load(p);
      for (int i = LANES; i < BLOCK; i += LANES) m = larger(m, load(p + i));
      most[b] = largest(m);
    }
  }
  const float *block(long b) const {
    return b == ties_block ? ties : (b + 1) * BLOCK > size ? tail : x + b * BLOCK;
  }
  // From token `end` to the end of its block, what equals `low` becomes minus infinity.
  void end_ties(float low, long end) {
    const long b = (end - 1) / BLOCK;
    memcpy(ties, block(b), sizeof ties);
    ties_block = b;
    for (long i = end - b * BLOCK; i < BLOCK; i++)
      if (ties[i] == low) ties[i] = -__builtin_inff();
  }
};

// A token as a number: of two, the likelier one's is lower; of equally likely ones the first one's.
typedef uint64_t Key;
INLINE Key key_of(float x, long id) {
  const uint32_t rising = (uint32_t)ordered(float_bits(&x, 0)) ^ 0x80000000u;
  return (Key)~rising << 32 | (uint32_t)id;
}
INLINE float value(Key key) {
  return float_of((uint32_t)ordered((int32_t)(~(uint32_t)(key >> 32) ^ 0x80000000u)));
}

// The `count` likeliest tokens in order; count is at most the size.
static int likeliest(const Row &row, int count, Key *found) {
  int have = 0;
  for (long b = 0; b < row.blocks; b++) {
    if (count == 0 || (have == count && key_of(row.most[b], 0) >> 32 >= found[count - 1] >> 32)) continue;
    const float *p = row.block(b);
    const long end = row.size - b * BLOCK < BLOCK ? row.size - b * BLOCK : BLOCK;
    for (long i = 0; i < end; i++) {
      const Key key = key_of(p[i], b * BLOCK + i);
      if (have == count && key >= found[count - 1]) continue;
      int at = have < count ? have++ : count - 1;
      for (; at > 0 && found[at - 1] > key; at--) found[at] = found[at - 1];
      found[at] = key;
    }
  }
  return have;
}
