// How attention walks over the cache: tiles of rows, and the runs of keys and values they need.
#pragma once
#include "attention_products.h"
#include "step.h"

static const int TILE = 32;  // rows

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

// The runs of one group that an item needs: keys, values, and the first ones needed after these.
struct Runs {
  int position, count;       // position of the first key
  int first_seen, end_seen;  // those in between are seen in full by all rows of the tile
  const word *at[2 * RUNS + FAR];

  const word *const *keys() const { return at; }
  const word *const *values() const { return at + count; }
  void lead_to(const Runs &next) {
    for (int i = 0; i < FAR; i++) at[2 * count + i] = next.at[i < 2 * next.count ? i : 2 * next.count - 1];
  }
};

template <class T>
static void find_runs(const Step &s, const Item &it, int window, int group, const word *k, const word *v, Runs &out) {
  const int from = group * GROUP > it.lowest ? group * GROUP : it.lowest / RUN * RUN;
  const int end = group * GROUP + GROUP - 1 < it.last ? group * GROUP + GROUP - 1 : it.last;
  const int32_t *table = s.tables + s.table_starts[it.seq];
  const long run_words = (long)RUN * s.head_dim / T::PER_WORD, block_runs = s.block_size / RUN;
  out.position = from;
  out.count = (end - from) / RUN + 1;
  const int lowest = window && it.last >= window ? it.last - window + 1 : 0;  // that the last row sees
  out.first_seen = lowest > from ? (lowest - from + RUN - 1) / RUN : 0;
  out.end_seen = it.first + 1 > from ? (it.first + 1 - from) / RUN : 0;
  if (out.end_seen > out.count) out.end_seen = out.count;
  if (out.first_seen > out.end_seen) out.first_seen = out.end_seen;
  for (int i = 0; i < out.count; i++) {
    const int at = from + i * RUN;
    const long block = table[at >> s.block_shift], inside = (at & (s.block_size - 1)) / RUN;
    const long run = (block * s.kv_heads + it.head) * block_runs + inside;
    out.at[i] = k + run * run_words;
    out.at[out.count + i] = v + run * run_words;
  }
}
