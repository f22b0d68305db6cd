// Attention over the paged KV cache, in place, with one arithmetic for prompts, chunks and decode.
//
// Cache of a layer, words of 32 bits (one fp32, or two bf16 to be multiplied and added together):
// for each block, KV head and run of 16 tokens, K as (head_dim / per_word, 16 tokens) and
// V as (16 / per_word, head_dim); a word of K pairs two dimensions, one of V two tokens.
//
// A row is one query head of one token. Its sequence's context is taken in groups of 128 positions
// from 0 on: scores, their maximum, powers of two, and the product with V, each element by its own
// chain of multiply-adds in ascending order. Rows that share keys are worked on together, in tiles
// and registers of any shape, which changes no row's chain. Hidden positions weigh exactly 0.
#pragma once
#include "softmax.h"
#if defined(PPINFER_AMX)
#include "attention_tiles.h"
#endif

// The next part when `left` of something is cut into equal parts of at most `most`.
INLINE int part(int left, int most) {
  const int parts = (left + most - 1) / most;
  return (left + parts - 1) / parts;
}

// Scores of a tile's rows against the keys of a group.
template <class T>
static void score(const Kernels<T> &kernels, Scratch<T> &w, int all_rows, int dim, const Runs &now) {
#if defined(PPINFER_AMX)
  if constexpr (T::PER_WORD == 2)
    if (dim % RUN == 0)
      return all_rows > 16 ? tile_scores<2>(w.queries, dim, now.keys(), now.count, w.scores, GROUP)
                           : tile_scores<1>(w.queries, dim, now.keys(), now.count, w.scores, GROUP);
#endif
  for (int r = 0, rows; r < all_rows; r += rows) {
    rows = kernels.rows_of(all_rows - r);
    for (int i = 0, count; i < now.count; i += count) {
      count = part(now.count - i, kernels.vectors_of(rows));
      kernels.keys[rows - 1][count - 1](w.queries + r * dim, dim, now.keys() + i,
                                        w.scores + r * GROUP + i * RUN);
    }
  }
}

// Adds weights times values of a group to a tile's results, whose rows are `width` long; the first
// group finds none.
template <class T>
static void mix(const Kernels<T> &kernels, Scratch<T> &w, int all_rows, int dim, int width, const Runs &now,
                bool first) {
#if defined(PPINFER_AMX)
  if constexpr (T::PER_WORD == 2)
    if (dim % RUN == 0)
      return all_rows > 16 ? tile_mix<2>(w.weights(0), 2 * GROUP, now.values(), now.count, dim, first, w.out)
                           : tile_mix<1>(w.weights(0), 2 * GROUP, now.values(), now.count, dim, first, w.out);
#endif
  const word *const *values = now.values(), *padded[RUNS];
  if (width != dim) {
    const int rows = RUN / T::PER_WORD;
    for (int i = 0; i < now.count; i++) {
      word *to = w.padded + i * rows * width;
      padded[i] = to;
      for (int j = 0; j < rows; j++) {
        memcpy(to + j * width, now.values()[i] + j * dim, dim * 4);
        memset(to + j * width + dim, 0, (width - dim) * 4);
      }
    }
    values = padded;
  }
  for (int r = 0, rows; r < all_rows; r += rows) {
    rows = kernels.rows_of(all_rows - r);
    for (int i = 0, count; i < width / LANES; i += count) {
      count = part(width / LANES - i, kernels.vectors_of(rows));
      kernels.values[rows - 1][count - 1](w.weights(r), values, now.values(), now.count, dim, i * LANES, width,
                                          first, w.out + r * width);
    }
  }
}

// A tile's rows one after the other: `visit` gets the row, its token and its query head.
template <class Visit> INLINE void for_rows(const Step &s, const Item &it, const Visit &visit) {
  int token = it.first_row / s.group, of_group = it.first_row % s.group;
  for (int r = 0; r < it.rows; r++) {
    visit(r, token, it.head * s.group + of_group);
    if (++of_group == s.group) {
      of_group = 0;
      token++;
    }
  }
}

INLINE void copy_query(const bf16 *from, bf16 *to, int dim) { memcpy(to, from, dim * 2); }
INLINE void copy_query(const float *from, float *to, int dim) { memcpy(to, from, dim * 4); }
INLINE void copy_query(const bf16 *from, float *to, int dim) {
  int i = 0;
  for (; i + LANES <= dim; i += LANES) store(to + i, load(from + i));
  if (i < dim) store_some(to + i, load_some(from + i, dim - i), dim - i);
}

template <class T>
static void attend_item(const Step &s, int window, const Kernels<T> &kernels, Scratch<T> &w, const Item &it,
                        Runs &now, const Item *following, const typename T::Element *q, long q_stride,
                        const word *k, const word *v, typename T::Element *out) {
  const int dim = s.head_dim, width = (dim + LANES - 1) / LANES * LANES;
  const float scale = 1.44269504f / __builtin_sqrtf((float)dim);
  const int first_token = s.offsets[it.seq];
  for_rows(s, it, [&](int r, int token, int head) {
    copy_query(q + (first_token + token) * q_stride + (long)head * dim, w.queries + r * dim, dim);
    w.positions[r] = s.starts[it.seq] + token;
  });
  const int first_group = it.lowest / GROUP, last_group = it.last / GROUP;
  for (int group = first_group; group <= last_group; group++) {
    Runs next = now;
    if (group < last_group) find_runs<T>(s, it, window, group + 1, k, v, next);
    else if (following) find_runs<T>(s, *following, window, following->lowest / GROUP, k, v, next);
    now.lead_to(next);
    score<T>(kernels, w, it.rows, dim, now);
    if (group == first_group) weigh<T, true>(w, it.rows, now, window, scale, width);
    else weigh<T, false>(w, it.rows, now, window, scale, width);
    mix<T>(kernels, w, it.rows, dim, width, now, group == first_group);
    now = next;
  }
  const long out_stride = (long)s.kv_heads * s.group * dim;
  for_rows(s, it, [&](int r, int token, int head) {
    const F share = all(1.0f / sum(load(w.totals + r * LANES)));
    typename T::Element *to = out + (first_token + token) * out_stride + (long)head * dim;
    for (int i = 0; i < dim; i += LANES) {
      const F x = load(w.out + r * width + i) * share;
      if (dim - i >= LANES) store(to + i, x);
      else store_some(to + i, x, dim - i);
    }
  });
}

// One thread's share of a step: items in order, cut where the costs so far reach its part.
template <class T>
static void attend(const Step &s, int window, const typename T::Element *q, long q_stride, const word *k,
                   const word *v, typename T::Element *out, int thread, int threads) {
  static constexpr Kernels<T> kernels;
  Scratch<T> w;
  Item first = {0, 0, 0, 0, 0, 0, 0, 0}, it;
  describe(s, window, first);
  long total = 0, from = 0, end = 1L << 62;
  if (threads > 1) {
    it = first;
    do total += cost(it);
    while (advance(s, window, it));
    from = total * thread / threads;
    end = total * (thread + 1) / threads;
  }
  long at = 0;
  it = first;
  bool more = true;
  while (more && at < from) {
    at += cost(it);
    more = advance(s, window, it);
  }
  if (!more || at >= end) return;
  Runs runs;
  find_runs<T>(s, it, window, it.lowest / GROUP, k, v, runs);
#if defined(PPINFER_AMX)
  int shaped_for = 0;
#endif
  while (more && at < end) {
    Item following = it;
    at += cost(it);
    more = advance(s, window, following);
#if defined(PPINFER_AMX)
    const int rows = it.rows < 16 ? it.rows : 16;
    if (rows != shaped_for) shape_attention_tiles(shaped_for = rows);
#endif
    attend_item<T>(s, window, kernels, w, it, runs, more && at < end ? &following : nullptr, q, q_stride, k, v, out);
    it = following;
  }
#if defined(PPINFER_AMX)
  end_tiles();
#endif
}
