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
#include "step.h"
#include "vector.h"
#if defined(PPINFER_AMX)
#include "amx.h"
#endif

static const int RUN = 16, GROUP = 128, RUNS = GROUP / RUN, TILE = 32, MAX_DIM = 256;

// fp32 and bf16 as the micro-kernels see them: `Left` is how a row of queries or weights is stored.
struct Fp32 {
  typedef float Element;
  typedef float Left;
  static const int PER_WORD = 1;
  struct Words1 { F x; };
  INLINE Words1 words(const word *p) { return {as_floats(load_words(p))}; }
  INLINE Words1 repeat(const Left *p, int i) { return {all(p[i])}; }
  INLINE F mac(Words1 a, Words1 b, F c) { return fma(a.x, b.x, c); }
};

struct Bf16 {
  typedef bf16 Element;
  static const int PER_WORD = 2;
#if defined(PPINFER_AVX512BF16)
  typedef bf16 Left;
  struct Words2 { __m512bh x; };
  INLINE Words2 words(const word *p) { return {(__m512bh)_mm512_loadu_si512(p)}; }
  INLINE Words2 repeat(const Left *p, int i) {
    int pair;
    memcpy(&pair, p + 2 * i, 4);
    return {(__m512bh)_mm512_set1_epi32(pair)};
  }
  INLINE F mac(Words2 a, Words2 b, F c) { return {_mm512_dpbf16_ps(c.v, a.x, b.x)}; }
#else
  typedef float Left;
  struct Words2 { F low, high; };
  INLINE Words2 words(const word *p) {
    const Words w = load_words(p);
    return {low_halves(w), high_halves(w)};
  }
  INLINE Words2 repeat(const Left *p, int i) { return {all(p[2 * i]), all(p[2 * i + 1])}; }
  INLINE F mac(Words2 a, Words2 b, F c) { return fma(a.high, b.high, fma(a.low, b.low, c)); }
#endif
};

// ------------------------------------------------------------------------------- micro-kernels

// R rows of queries against V runs of keys: sums (R, V * 16), `GROUP` apart.
template <class T, int R, int V>
static void multiply_keys(const typename T::Left *q, int dim, const word *const *keys,
                          const word *const *ahead, float *scores) {
  F sums[R][V];
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int v = 0; v < V; v++) sums[r][v] = zero();
  const int steps = dim / T::PER_WORD;
  for (int i = 0; i < steps; i++) {
    decltype(T::words((const word *)0)) k[V];
    UNROLL for (int v = 0; v < V; v++) {
      k[v] = T::words(keys[v] + 16 * i);
      prefetch(ahead[v] + 16 * i);
    }
    UNROLL for (int r = 0; r < R; r++) {
      const auto a = T::repeat(q + (long)r * dim, i);
      UNROLL for (int v = 0; v < V; v++) sums[r][v] = T::mac(a, k[v], sums[r][v]);
    }
  }
  UNROLL for (int r = 0; r < R; r++)
    UNROLL for (int v = 0; v < V; v++) store(scores + r * GROUP + 16 * v, sums[r][v]);
}

// Adds to R rows of results, V * 16 dimensions from `at` on: weights of `runs` runs times values.
template <class T, int R, int V>
static void multiply_values(const typename T::Left *weights, const word *const *values,
                            const word *const *ahead, int runs, int at, int width, float *out) {
  F sums[R][V];
  UNROLL for (int r = 0; r < R; r++)
    UNROLL for (int v = 0; v < V; v++) sums[r][v] = load(out + r * width + at + 16 * v);
  for (int run = 0; run < runs; run++) {
    const word *from = values[run] + at, *later = ahead[run] + at;
    for (int i = 0; i < RUN / T::PER_WORD; i++, from += width, later += width) {
      decltype(T::words((const word *)0)) x[V];
      UNROLL for (int v = 0; v < V; v++) {
        x[v] = T::words(from + 16 * v);
        prefetch(later + 16 * v);
      }
      UNROLL for (int r = 0; r < R; r++) {
        const auto a = T::repeat(weights + r * GROUP + RUN * run, i);
        UNROLL for (int v = 0; v < V; v++) sums[r][v] = T::mac(a, x[v], sums[r][v]);
      }
    }
  }
  UNROLL for (int r = 0; r < R; r++)
    UNROLL for (int v = 0; v < V; v++) store(out + r * width + at + 16 * v, sums[r][v]);
}

template <class T> struct Kernels {
  typedef typename T::Left Left;
  typedef void (*Keys)(const Left *, int, const word *const *, const word *const *, float *);
  typedef void (*Values)(const Left *, const word *const *, const word *const *, int, int, int, float *);
  Keys keys[MAX_ROWS][MAX_VECTORS];
  Values values[MAX_ROWS][MAX_VECTORS];

  template <int R, int V> constexpr void fill() {
    keys[R - 1][V - 1] = multiply_keys<T, R, V>;
    values[R - 1][V - 1] = multiply_values<T, R, V>;
    if constexpr (V > 1) fill<R, V - 1>();
    else if constexpr (R > 1) fill<R - 1, MAX_VECTORS>();
  }
  constexpr Kernels() : keys(), values() { fill<MAX_ROWS, MAX_VECTORS>(); }
};

// The next part when `left` of something is cut into equal parts of at most `most`.
INLINE int part(int left, int most) {
  const int parts = (left + most - 1) / most;
  return (left + parts - 1) / parts;
}

// ------------------------------------------------------------------------------- tiles

// A tile of a sequence: `rows` rows from `first_row` on of its tokens times the heads of a KV head.
struct Item { int seq, head, tile, rows, first_row, first, last, lowest; };  // positions

INLINE int tiles_of(const Step &s, int seq) { return (s.lengths[seq] * s.group + TILE - 1) / TILE; }

INLINE void describe(const Step &s, int window, Item &it) {
  it.first_row = it.tile * TILE;
  const int all_rows = s.lengths[it.seq] * s.group;
  it.rows = all_rows - it.first_row < TILE ? all_rows - it.first_row : TILE;
  it.first = s.starts[it.seq] + it.first_row / s.group;
  it.last = s.starts[it.seq] + (it.first_row + it.rows - 1) / s.group;
  it.lowest = window && it.first >= window ? it.first - window + 1 : 0;
}

INLINE bool advance(const Step &s, int window, Item &it) {
  if (++it.tile == tiles_of(s, it.seq)) {
    it.tile = 0;
    if (++it.head == s.kv_heads) {
      it.head = 0;
      if (++it.seq == s.num_seqs) return false;
    }
  }
  describe(s, window, it);
  return true;
}

INLINE long cost(const Item &it) { return (long)(it.last - it.lowest + 64) * (it.rows + 8); }

// The runs of one group that an item needs.
struct Runs {
  int group, position, count;  // position of the first key
  const word *keys[RUNS], *values[RUNS];
};

template <class T>
static void find_runs(const Step &s, const Item &it, int group, const word *k, const word *v, Runs &out) {
  const int from = group * GROUP > it.lowest ? group * GROUP : it.lowest / RUN * RUN;
  const int end = group * GROUP + GROUP - 1 < it.last ? group * GROUP + GROUP - 1 : it.last;
  const int32_t *table = s.tables + s.table_starts[it.seq];
  const long run_words = (long)RUN * s.head_dim / T::PER_WORD, block_runs = s.block_size / RUN;
  out.group = group;
  out.position = from;
  out.count = (end - from) / RUN + 1;
  for (int i = 0; i < RUNS; i++) {
    if (i >= out.count) {
      out.keys[i] = out.keys[0];
      out.values[i] = out.values[0];
      continue;
    }
    const int at = from + i * RUN;
    const long block = table[at >> s.block_shift], inside = (at & (s.block_size - 1)) / RUN;
    const long run = (block * s.kv_heads + it.head) * block_runs + inside;
    out.keys[i] = k + run * run_words;
    out.values[i] = v + run * run_words;
  }
}

template <class T> struct Scratch {
  alignas(64) typename T::Left queries[TILE * MAX_DIM];
  alignas(64) typename T::Left weights[TILE * GROUP];
  alignas(64) float scores[TILE * GROUP];
  alignas(64) float out[TILE * MAX_DIM];
  alignas(64) float totals[TILE * LANES];
  float peaks[TILE];
  alignas(64) word padded[GROUP * MAX_DIM];  // values of a head size that is no multiple of 16
};

INLINE void put(float *to, F x) { store(to, x); }
#if defined(PPINFER_AVX512BF16)
INLINE void put(bf16 *to, F x) { store(to, x); }
#endif

// Scores of a row's group to weights; rescales what the row has so far to the group's maximum.
template <class T>
static void weigh(Scratch<T> &w, int r, const Runs &runs, int lowest, int position, float scale, int width) {
  float *scores = w.scores + r * GROUP;
  F peak = all(-__builtin_inff());
  for (int i = 0; i < runs.count; i++) {
    const int key = runs.position + i * RUN;
    F x = load(scores + i * RUN);
    if (key < lowest || key + RUN - 1 > position) {
      x = keep(x, lowest - key, position - key);
      store(scores + i * RUN, x);
    }
    peak = larger(x, peak);
  }
  const float group_peak = largest(peak), before = w.peaks[r];
  float now = before;
  float *total = w.totals + r * LANES;
  if (group_peak > before) {
    w.peaks[r] = now = group_peak;
    const F shrink = exp2(all((before - now) * scale));
    store(total, load(total) * shrink);
    for (int i = 0; i < width; i += LANES) {
      float *out = w.out + r * width + i;
      store(out, load(out) * shrink);
    }
  }
  const F factor = all(scale), offset = all(now == -__builtin_inff() ? 0.0f : -now * scale);
  F sum = zero();
  for (int i = 0; i < runs.count; i++) {
    const F x = exp2(fma(load(scores + i * RUN), factor, offset));
    sum = sum + x;
    put(w.weights + r * GROUP + i * RUN, x);
  }
  store(total, load(total) + sum);
}

// Scores of a tile's rows against the keys of a group.
template <class T>
static void score(const Kernels<T> &kernels, Scratch<T> &w, int all_rows, int dim, const Runs &now, const Runs &next) {
#if defined(PPINFER_AMX)
  if constexpr (T::PER_WORD == 2)
    if (dim % RUN == 0)
      return tile_scores(w.queries, dim, all_rows > 16 ? 2 : 1, now.keys, next.keys, now.count, w.scores, GROUP);
#endif
  for (int r = 0, rows; r < all_rows; r += rows) {
    rows = part(all_rows - r, MAX_ROWS);
    for (int i = 0, count; i < now.count; i += count) {
      count = part(now.count - i, MAX_VECTORS);
      kernels.keys[rows - 1][count - 1](w.queries + r * dim, dim, now.keys + i, next.keys + i,
                                        w.scores + r * GROUP + i * RUN);
    }
  }
}

// Adds weights times values of a group to a tile's results, whose rows are `width` long.
template <class T>
static void mix(const Kernels<T> &kernels, Scratch<T> &w, int all_rows, int dim, int width, const Runs &now,
                const Runs &next) {
#if defined(PPINFER_AMX)
  if constexpr (T::PER_WORD == 2)
    if (dim % RUN == 0)
      return tile_mix(w.weights, GROUP, all_rows > 16 ? 2 : 1, now.values, next.values, now.count, dim, w.out);
#endif
  const word *const *values = now.values, *padded[RUNS];
  if (width != dim) {
    const int rows = RUN / T::PER_WORD;
    for (int i = 0; i < now.count; i++) {
      word *to = w.padded + i * rows * width;
      padded[i] = to;
      for (int j = 0; j < rows; j++) {
        memcpy(to + j * width, now.values[i] + j * dim, dim * 4);
        memset(to + j * width + dim, 0, (width - dim) * 4);
      }
    }
    values = padded;
  }
  for (int r = 0, rows; r < all_rows; r += rows) {
    rows = part(all_rows - r, MAX_ROWS);
    for (int i = 0, count; i < width / LANES; i += count) {
      count = part(width / LANES - i, MAX_VECTORS);
      kernels.values[rows - 1][count - 1](w.weights + r * GROUP, values, next.values, now.count, i * LANES, width,
                                          w.out + r * width);
    }
  }
}

template <class T>
static void attend_item(const Step &s, int window, const Kernels<T> &kernels, Scratch<T> &w, const Item &it,
                        Runs &now, const Item *following, const typename T::Element *q, long q_stride,
                        const word *k, const word *v, typename T::Element *out) {
  const int dim = s.head_dim, width = (dim + LANES - 1) / LANES * LANES;
  const float scale = 1.44269504f / __builtin_sqrtf((float)dim);
  for (int r = 0; r < it.rows; r++) {
    const int row = it.first_row + r, token = s.offsets[it.seq] + row / s.group;
    const typename T::Element *from = q + token * q_stride + (long)(it.head * s.group + row % s.group) * dim;
    int i = 0;
    for (; i + LANES <= dim; i += LANES) put(w.queries + r * dim + i, load(from + i));
    if (i < dim) {
      typename T::Left some[LANES];
      put(some, load_some(from + i, dim - i));
      memcpy(w.queries + r * dim + i, some, (dim - i) * sizeof *some);
    }
    w.peaks[r] = -__builtin_inff();
    store(w.totals + r * LANES, zero());
    for (i = 0; i < width; i += LANES) store(w.out + r * width + i, zero());
  }
  const int last_group = it.last / GROUP;
  for (int group = it.lowest / GROUP; group <= last_group; group++) {
    Runs next = now;
    if (group < last_group) find_runs<T>(s, it, group + 1, k, v, next);
    else if (following) find_runs<T>(s, *following, following->lowest / GROUP, k, v, next);
    score<T>(kernels, w, it.rows, dim, now, next);
    for (int r = 0; r < it.rows; r++) {
      const int position = s.starts[it.seq] + (it.first_row + r) / s.group;
      weigh<T>(w, r, now, window ? position - window + 1 : 0, position, scale, width);
    }
    mix<T>(kernels, w, it.rows, dim, width, now, next);
    now = next;
  }
  for (int r = 0; r < it.rows; r++) {
    const int row = it.first_row + r, token = s.offsets[it.seq] + row / s.group;
    const F total = all(sum(load(w.totals + r * LANES)));
    typename T::Element *to = out + ((long)token * s.kv_heads * s.group + it.head * s.group + row % s.group) * dim;
    for (int i = 0; i < dim; i += LANES) {
      const F x = load(w.out + r * width + i) / total;
      if (dim - i >= LANES) store(to + i, x);
      else store_some(to + i, x, dim - i);
    }
  }
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
  find_runs<T>(s, it, it.lowest / GROUP, k, v, runs);
#if defined(PPINFER_AMX)
  begin_tiles();
#endif
  while (more && at < end) {
    Item following = it;
    at += cost(it);
    more = advance(s, window, following);
    attend_item<T>(s, window, kernels, w, it, runs, more && at < end ? &following : nullptr, q, q_stride, k, v, out);
    it = following;
  }
#if defined(PPINFER_AMX)
  end_tiles();
#endif
}
