// Scores of a tile's rows to weights, a group of positions at a time, and what they weigh in all.
//
// A row's scores weigh 2^(scale * (score - base)). Its base is its first group's highest score; it
// is raised, and the results so far scaled down, only where a weight would pass 2^HEADROOM.
#pragma once
#include "attention_walk.h"

static const int MAX_DIM = 256, HEADROOM = 8;

// What a thread keeps of the tile that it works on, by row.
template <class T> struct Scratch {
  alignas(64) typename T::Left queries[TILE * MAX_DIM];
  alignas(64) float scores[TILE * GROUP];  // a row's weights come in place of its scores
  alignas(64) float out[TILE * MAX_DIM];
  alignas(64) float totals[TILE * LANES];
  float bases[TILE], limits[TILE], offsets[TILE];  // limits: scores that the base does for
  int positions[TILE];
  alignas(64) word padded[GROUP * MAX_DIM];  // values of a head size that is no multiple of 16

  typename T::Left *weights(int r) { return (typename T::Left *)(scores + r * GROUP); }
};

INLINE void put(float *to, F x) { store(to, x); }
INLINE void put(float *to, F x, F y) { store(to, x); store(to + LANES, y); }
#if defined(PPINFER_AVX512BF16)
INLINE void put(bf16 *to, F x) { store(to, x); }
INLINE void put(bf16 *to, F x, F y) { _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(y.v, x.v)); }
#endif

template <class T> INLINE void set_base(Scratch<T> &w, int r, float base, float scale) {
  w.bases[r] = base;
  w.limits[r] = base + HEADROOM / scale;
  w.offsets[r] = base == -__builtin_inff() ? 0 : -base * scale;  // nothing is seen: all weigh nothing
}

template <class T>
static __attribute__((noinline)) void raise_base(Scratch<T> &w, int r, float base, float scale, int width) {
  const F shrink = exp2(all((w.bases[r] - base) * scale));
  float *total = w.totals + r * LANES, *out = w.out + r * width;
  set_base(w, r, base, scale);
  store(total, load(total) * shrink);
  for (int i = 0; i < width; i += LANES) store(out + i, load(out + i) * shrink);
}

// Scores of hidden positions become minus infinity.
template <class T> static void hide(Scratch<T> &w, int rows, const Runs &runs, int window) {
  for (int r = 0; r < rows; r++) {
    const int position = w.positions[r], lowest = window ? position - window + 1 : 0;
    const auto hide_some = [&](int from, int end) {
      for (int i = from; i < end; i++) {
        const int key = runs.position + i * RUN;
        float *scores = w.scores + r * GROUP + i * RUN;
        store(scores, keep(load(scores), lowest - key, position - key));
      }
    };
    hide_some(0, runs.first_seen);
    hide_some(runs.end_seen, runs.count);
  }
}

template <class T, bool FIRST>
INLINE void weigh_row(Scratch<T> &w, int r, const Runs &runs, float scale, int width) {
  float *scores = w.scores + r * GROUP, *total = w.totals + r * LANES;
  typename T::Left *weights = w.weights(r);  // behind the scores that are yet to be read
  F peak = load(scores);
  for (int i = 1; i < runs.count; i++) peak = larger(load(scores + i * RUN), peak);
  if (FIRST) set_base(w, r, largest(peak), scale);
  else if (any_above(peak, w.limits[r])) raise_base(w, r, largest(peak), scale, width);
  const F factor = all(scale), offset = all(w.offsets[r]);
  F sum = FIRST ? zero() : load(total);
  int i = 0;
  for (; i + 2 <= runs.count; i += 2) {
    const F x = T::weight(fma(load(scores + i * RUN), factor, offset));
    const F y = T::weight(fma(load(scores + i * RUN + RUN), factor, offset));
    sum = sum + x + y;
    put(weights + i * RUN, x, y);
  }
  if (i < runs.count) {
    const F x = T::weight(fma(load(scores + i * RUN), factor, offset));
    sum = sum + x;
    put(weights + i * RUN, x);
  }
  store(total, sum);
}

template <class T, bool FIRST>
static void weigh(Scratch<T> &w, int rows, const Runs &runs, int window, float scale, int width) {
  hide(w, rows, runs, window);
  for (int r = 0; r < rows; r++) weigh_row<T, FIRST>(w, r, runs, scale, width);
}
