// Draws a token from a row of logits as stage/draw.py defines it, or looks at one that is given, a
// row a thread.
//
// All sums are of doubles in a fixed order, with no fused operation and no call into a library, so
// every path draws the same tokens. Weights are relative to the likeliest token's, which is 1; one
// below 2^-80 counts as nothing: a draw has 53 bits.
#pragma once
#include "logits.h"
#include <algorithm>
#include <limits.h>
#include <math.h>
#include <vector>

static const int MAX_TOP = 20;           // MAX_LOGPROBS of sampling.py
static const int MAX_LISTED = 256;       // a larger top_k is searched for, not listed
static const int OCTAVES = 80, BINS = OCTAVES * 4 + 1;
static const double FLT_LEAST = -3.4028234663852886e38;

// One row's settings, as kernels/sample.py fills them in. The logits of `seen` tokens (in prompt or
// output, `counts` times in the output) are penalised, `biased` ones moved, `forbidden` ones ruled out;
// of a `mask`, a bit a token, those without a bit.
struct Settings {
  int64_t seed, position, top_k;
  double temperature, top_p, min_p;  // temperature 0: the highest
  const int32_t *seen;
  const float *counts;
  const int32_t *biased;
  const float *biases;
  const int32_t *forbidden;
  const uint8_t *mask;  // or null
  int32_t num_seen, num_biased, num_forbidden;
  float repetition, presence, frequency;
  int32_t row, highest;  // which row of the logits, and its greatest element
  int32_t logprobs;      // how many likeliest tokens to report, beside the drawn; -1 for neither
  int32_t given;         // the token to report on, which is not drawn then; -1 draws
};

struct Drawn {
  int32_t token, num_top;
  double logprob;
  double top_logprobs[MAX_TOP];
  int32_t top_ids[MAX_TOP];
};

// stage/philox.py
static double uniform(uint64_t seed, uint64_t position) {
  uint32_t c[4] = {(uint32_t)position, (uint32_t)(position >> 32), 0, 0};
  uint32_t k[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
  for (int round = 0; round < 10; round++) {
    const uint64_t p = 0xD2511F53ull * c[0], q = 0xCD9E8D57ull * c[2];
    const uint32_t a = (uint32_t)(q >> 32) ^ c[1] ^ k[0], b = (uint32_t)(p >> 32) ^ c[3] ^ k[1];
    c[0] = a, c[1] = (uint32_t)q, c[2] = b, c[3] = (uint32_t)p;
    k[0] += 0x9E3779B9u, k[1] += 0xBB67AE85u;
  }
  return (double)(((uint64_t)c[0] << 21) ^ (c[1] >> 11)) / 9007199254740992.0;
}

// The weights 2^((x - most) * scale) of a row's tokens, and which are kept: logits of at least
// `low`, after block `ties_block` above it.
struct Weights {
  double most, scale, floor;
  float low;
  double from, above;  // what these come to
  long ties_block;

  Weights(float most, double temperature)
      : most(most), scale(1.4426950408889634 / temperature), floor(this->most - OCTAVES / scale) {
    if (!(floor > FLT_LEAST)) floor = FLT_LEAST;  // minus infinity is never kept
    keep(-__builtin_inff(), LONG_MAX);
  }
  void keep(float from_low, long until_block) {
    low = from_low, ties_block = until_block;
    from = low > floor ? low : floor;
    above = low >= floor ? nextafterf(low, __builtin_inff()) : floor;
  }
  INLINE_MEMBER double limit(long b) const { return b <= ties_block ? from : above; }
  INLINE_MEMBER doubles exponent(doubles x) const { return (x - most) * scale; }
  // The weight within 5e-11 of itself, exactly 1 for the likeliest; nothing below `least`.
  INLINE_MEMBER doubles of(doubles x, double least) const {
    const doubles d = exponent(x), t = d + 6755399441055744.0;  // 1.5 * 2^52: rounds to an integer
    const doubles f = d - (t - 6755399441055744.0);
    doubles p = f * 1.5195936495940364e-05 + 0.0001546677336117656;
    p = p * f + 0.0013333936081087495;
    p = p * f + 0.009618038068311968;
    p = p * f + 0.05550410364593396;
    p = p * f + 0.24022651067116502;
    p = p * f + 0.6931471807050248;
    p = p * f + 1.0;
    return (doubles)(((longs)p + ((longs)t << 52)) & (longs)(x >= least));
  }
};

INLINE double total(const doubles &x) {
  return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
}

// Sums by block, and their sum.
static double add_up(const Row &row, const Weights &w, std::vector<double> &sums) {
  sums.assign(row.blocks, 0);
  double all = 0;
  for (long b = 0; b < row.blocks; b++) {
    const double least = w.limit(b);
    if (row.most[b] < least) continue;
    const float *p = row.block(b);
    doubles sum = {};
    for (int i = 0; i < BLOCK; i += WIDTH) sum += w.of(widened(p + i), least);
    all += sums[b] = total(sum);
  }
  return all;
}

// The least likely token of the likeliest ones that reach `share`: of the sum of the weights, or, to
// COUNT, of tokens. Bins of a quarter of an octave are added up; the one where the share is reached
// is then halved and halved. The key of a token that no weight reaches where the share is more than all.
template <bool COUNT> static Key last_of_share(const Row &row, const Weights &w, double share) {
  std::vector<doubles> bins(BINS);  // a lane each, so that neighbours do not wait for each other
  const auto bin_of = [&](doubles x) { return __builtin_convertvector(w.exponent(x) * -4.0, ints8); };
  const auto weight_of = [&](doubles x) {
    return COUNT ? (doubles)((longs)(doubles{} + 1.0) & (longs)(x >= w.from)) : w.of(x, w.from);
  };
  for (long b = 0; b < row.blocks; b++) {
    if (row.most[b] < w.from) continue;
    const float *p = row.block(b);
    for (int i = 0; i < BLOCK; i += WIDTH) {
      const doubles x = widened(p + i), weight = weight_of(x);
      const ints8 bin = bin_of(x < w.from ? doubles{} + w.most : x);
      for (int j = 0; j < WIDTH; j++) ((double *)&bins[bin[j]])[j] += weight[j];
    }
  }
  double all = 0, before = 0;
  for (const doubles &bin : bins) all += total(bin);
  if (!COUNT) share *= all;
  if (share > all) return key_of(-__builtin_inff(), 0);
  int reached = 0;
  for (; reached < BINS - 1; reached++) {
    const double next = before + total(bins[reached]);
    if (next >= share) break;
    before = next;
  }
  std::vector<Key> keys;
  for (long b = 0; b < row.blocks; b++) {
    if (row.most[b] < w.from || bin_of(doubles{} + row.most[b])[0] > reached) continue;
    const float *p = row.block(b);
    for (int i = 0; i < BLOCK; i += WIDTH) {
      const doubles x = widened(p + i);
      const ints8 bin = bin_of(x < w.from ? doubles{} - __builtin_inf() : x);
      for (int j = 0; j < WIDTH; j++)
        if (bin[j] == reached && x[j] >= w.from) keys.push_back(key_of((float)x[j], b * BLOCK + i + j));
    }
  }
  Key *first = keys.data(), *end = first + keys.size();
  while (end - first > 1) {
    Key *middle = first + (end - first) / 2;
    std::nth_element(first, middle, end);
    double next = before;
    for (Key *key = first; key < middle; key++) next += weight_of(doubles{} + value(*key))[0];
    if (next >= share) end = middle;
    else first = middle, before = next;
  }
  return *first;
}

// The token in whose part of the sum `u` of it lies, tokens in their own order.
static int32_t at_share(const Row &row, const Weights &w, double u) {
  std::vector<double> sums;
  const double target = u * add_up(row, w, sums);
  double before = 0;
  long found = 0;
  for (long b = 0; b < row.blocks; b++) {
    if (sums[b] == 0) continue;
    found = b;
    if (before + sums[b] > target) break;
    before += sums[b];
  }
  const float *p = row.block(found);
  int32_t token = 0;  // the block's last where rounding leaves none
  for (int i = 0; i < BLOCK; i += WIDTH) {
    const doubles weight = w.of(widened(p + i), w.limit(found));
    for (int j = 0; j < WIDTH; j++) {
      if (weight[j] == 0) continue;
      token = (int32_t)(found * BLOCK + i + j);
      before += weight[j];
      if (before > target) return token;
    }
  }
  return token;
}

static int32_t draw(Row row, float most, const Settings &s) {
  Weights w(most, s.temperature);
  if (0 < s.top_k && s.top_k <= MAX_LISTED && s.top_k < row.size) {
    Key found[MAX_LISTED];
    w.keep(value(found[likeliest(row, (int)s.top_k, found) - 1]), LONG_MAX);
  } else if (0 < s.top_k && s.top_k < row.size) {
    w.keep(value(last_of_share<true>(row, w, (double)s.top_k)), LONG_MAX);
  }
  if (s.top_p < 1) {
    const Key last = last_of_share<false>(row, w, s.top_p);
    const long end = (long)(uint32_t)last + 1;
    row.end_ties(value(last), end);
    w.keep(value(last), row.ties_block);
  }
  if (s.min_p > 0) {
    const double least = w.most + s.temperature * log(s.min_p);
    float low = (float)least;
    if (low < least) low = nextafterf(low, __builtin_inff());
    if (low > w.low) w.keep(low, LONG_MAX);
  }
  return at_share(row, w, uniform(s.seed, s.position));
}

static void adjust(const Settings &s, std::vector<float> &x) {
  for (int i = 0; i < s.num_seen; i++) {
    float &v = x[s.seen[i]];
    if (s.repetition != 1) v = v > 0 ? v / s.repetition : v * s.repetition;
    v = v - s.frequency * s.counts[i];
    if (s.counts[i] > 0) v = v - s.presence;
  }
  for (int i = 0; i < s.num_biased; i++) x[s.biased[i]] += s.biases[i];
  for (int i = 0; i < s.num_forbidden; i++) x[s.forbidden[i]] = -__builtin_inff();
}

INLINE bool has_bit(const uint8_t *mask, long i) { return mask[i >> 3] >> (i & 7) & 1; }

// Rules out what has no bit in the mask. Returns the greatest of the rest; where that is minus infinity,
// all of the rest are made equal.
static int32_t masked(const uint8_t *mask, std::vector<float> &x) {
  const long size = x.size();
  long i = 0;
  for (; i + 8 <= size; i += 8) {
    const int bits = mask[i >> 3];
    if (bits == 0) std::fill_n(&x[i], 8, -__builtin_inff());  // most bytes are this or 255
    else if (bits != 255)
      for (int j = 0; j < 8; j++) x[i + j] = bits >> j & 1 ? x[i + j] : -__builtin_inff();
  }
  for (; i < size; i++)
    if (!has_bit(mask, i)) x[i] = -__builtin_inff();
  int32_t highest = argmax(x.data(), size);
  if (x[highest] > -__builtin_inff()) return highest;
  for (i = 0; i < size; i++) x[i] = has_bit(mask, i) ? 0 : -__builtin_inff();
  return argmax(x.data(), size);
}

// Its greatest, which is finite hereafter: where it was not, as much of it as of any equal one is
// left, and nothing of the rest.
static float level(std::vector<float> &x, int32_t highest) {
  const float most = x[highest];
  if (!isinf(most)) return most;
  for (float &v : x) v = v == most ? 0 : -__builtin_inff();
  return 0;
}

static void report(std::vector<float> &x, const Settings &s, Drawn &out) {
  const float most = level(x, s.highest);
  const Row row(x.data(), x.size());
  std::vector<double> sums;
  const double shift = log(add_up(row, Weights(most, 1), sums)) + most;
  Key found[MAX_TOP];
  out.num_top = likeliest(row, (int)(s.logprobs < row.size ? s.logprobs : row.size), found);
  out.logprob = x[out.token] - shift;
  for (int i = 0; i < out.num_top; i++) {
    out.top_ids[i] = (int32_t)(uint32_t)found[i];
    out.top_logprobs[i] = value(found[i]) - shift;
  }
}

template <class T> static void sample(const T *x, long size, const Settings &s, Drawn &out) {
  std::vector<float> logits(size), changed;
  long i = 0;
  for (; i + LANES <= size; i += LANES) store(&logits[i], load(x + i));
  if (i < size) store_some(&logits[i], load_some(x + i, (int)(size - i)), (int)(size - i));
  out.token = s.given >= 0 ? s.given : s.highest;
  std::vector<float> *from = &logits;
  if (s.num_seen || s.num_biased || s.num_forbidden || s.mask) {
    from = &(changed = logits);
    adjust(s, changed);
    out.token = s.mask ? masked(s.mask, changed) : argmax(changed.data(), size);
  }
  if (s.temperature > 0) {
    const float most = level(*from, out.token);
    out.token = draw(Row(from->data(), size), most, s);
  }
  if (s.logprobs >= 0) report(logits, s, out);
}
