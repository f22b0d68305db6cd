// Queries and keys of a step's tokens get their positions; keys and values go to the cache.
#pragma once
#include "rows.h"

template <class E> INLINE void norm_heads(E *x, int heads, const E *weight, int dim, float eps) {
  if (weight)
    for (int h = 0; h < heads; h++) norm_row(x + h * dim, weight, x + h * dim, dim, eps);
}

// Rotary positions of LANES dimensions, or `n`, of each half of some heads in place: products and
// sums are rounded as the reference rounds them.
template <class E, bool ALL_LANES>
INLINE void rotate_some(E *x, int heads, const E *cos, const E *sin, int dim, int n) {
  const int half = dim / 2;
  const auto get = [n](const E *p) { return ALL_LANES ? load(p) : load_some(p, n); };
  const auto put = [n](E *p, F y) { ALL_LANES ? store(p, y) : store_some(p, y, n); };
  const F cos_a = get(cos), cos_b = get(cos + half), sin_a = get(sin), sin_b = get(sin + half);
  for (int h = 0; h < heads; h++, x += dim) {
    const F a = get(x), b = get(x + half);
    put(x, rounded(x, a * cos_a) + rounded(x, b * sin_a));
    put(x + half, rounded(x, b * cos_b) + rounded(x, a * sin_b));
  }
}

// cos and sin are (dim,), the first half of sin negated.
template <class E> INLINE void rotate_heads(E *x, int heads, const E *cos, const E *sin, int dim) {
  const int half = dim / 2;
  int i = 0;
  for (; i + LANES <= half; i += LANES) rotate_some<E, true>(x + i, heads, cos + i, sin + i, dim, LANES);
  if (i < half) rotate_some<E, false>(x + i, heads, cos + i, sin + i, dim, half - i);
}

INLINE void store_key(const float *k, float *run, int inside, int dim) {
  for (int i = 0; i < dim; i++) run[i * 16 + inside] = k[i];
}
INLINE void store_key(const bf16 *k, bf16 *run, int inside, int dim) {
  for (int i = 0; i < dim / 2; i++) memcpy(run + (i * 16 + inside) * 2, k + 2 * i, 4);
}
INLINE void store_value(const float *v, float *run, int inside, int dim) { memcpy(run + inside * dim, v, dim * 4); }
INLINE void store_value(const bf16 *v, bf16 *run, int inside, int dim) {
  bf16 *to = run + inside / 2 * dim * 2 + inside % 2;
  int i = 0;
#if defined(PPINFER_AVX512BF16) || defined(PPINFER_AVX512)
  // Into words that the token shares with its neighbour, whose half another thread may be writing.
  for (; i + LANES <= dim; i += LANES) {
    const __m512i spread = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(v + i)));
    _mm512_mask_storeu_epi16(to + 2 * i, 0x55555555, spread);
  }
#endif
  for (; i < dim; i++) to[2 * i] = v[i];
}

// Where a token lies in the cache: a run of the first KV head, those of the others `head_runs` apart.
struct Place {
  int seq, position, inside;
  long run;
};

INLINE Place place_of(const Step &s, int token, int seq) {  // of this sequence or a later one
  while (token >= s.offsets[seq] + s.lengths[seq]) seq++;
  const int position = s.starts[seq] + token - s.offsets[seq];
  const long block = s.tables[s.table_starts[seq] + (position >> s.block_shift)];
  const long run = block * s.kv_heads * (s.block_size / 16) + (position & (s.block_size - 1)) / 16;
  return {seq, position, position % 16, run};
}

// Asks for the lines of the cache that a token is about to be stored in.
template <class E> INLINE void ask_for(const Step &s, const Place &p, const E *k_pool, const E *v_pool) {
  const int per_word = 4 / sizeof(E), line = 64 / sizeof(E), row = s.head_dim * per_word;
  for (int h = 0; h < s.kv_heads; h++) {
    const long run = (p.run + (long)h * (s.block_size / 16)) * 16 * s.head_dim;
    for (int i = 0; i < 16 * s.head_dim; i += line) prefetch_soon(k_pool + run + i);
    for (int i = 0; i < row; i += line) prefetch_soon(v_pool + run + p.inside / per_word * row + i);
  }
}

// Tokens first to last (exclusive) of a step: norm and rotate queries and keys in place where asked
// to, and store keys and values in the cache. A run that this step begins is cleared behind the
// step's last token, so that what an earlier owner left there cannot spoil a sum as NaN times 0.
template <class E>
static void store_tokens(const Step &s, const Layer &layer, E *q, E *k, const E *v, long stride, const E *cos,
                         const E *sin, E *k_pool, E *v_pool, int first, int last) {
  const int dim = s.head_dim;
  if (first >= last) return;
  Place next = place_of(s, first, 0);
  ask_for(s, next, k_pool, v_pool);
  for (int token = first; token < last; token++) {
    const Place place = next;
    if (token + 1 < last) {
      next = place_of(s, token + 1, place.seq);
      if (next.seq != place.seq) ask_for(s, next, k_pool, v_pool);
    }
    const int position = place.position, inside = place.inside;
    const bool is_last = token == s.offsets[place.seq] + s.lengths[place.seq] - 1;
    const bool clear = is_last && inside < 15 && position - inside >= s.starts[place.seq];
    E *queries = q + token * stride, *keys = k + token * stride;
    if (q) {
      const int heads = s.kv_heads * s.group;
      const E *token_cos = cos + (long)position * dim, *token_sin = sin + (long)position * dim;
      norm_heads(queries, heads, (const E *)layer.q_norm, dim, layer.eps);
      norm_heads(keys, s.kv_heads, (const E *)layer.k_norm, dim, layer.eps);
      rotate_heads(queries, heads, token_cos, token_sin, dim);
      rotate_heads(keys, s.kv_heads, token_cos, token_sin, dim);
    }
    for (int h = 0; h < s.kv_heads; h++) {
      const long run = (place.run + (long)h * (s.block_size / 16)) * 16 * dim;
      store_key(keys + h * dim, k_pool + run, inside, dim);
      store_value(v + token * stride + h * dim, v_pool + run, inside, dim);
      if (clear) {
        const E zeros[256] = {};
        for (int i = inside + 1; i < 16; i++) {
          store_key(zeros, k_pool + run, i, dim);
          store_value(zeros, v_pool + run, i, dim);
        }
      }
    }
  }
}
