// All decoder layers of a stage in one call: between two operations no thread goes back to Python,
// or to sleep.
#pragma once
#include "attention.h"
#include "product.h"
#include "rows.h"
#include "store.h"
#if defined(PPINFER_AVX512BF16)
#include "linear.h"
#endif
#include <omp.h>
#include <sched.h>

struct Product {
  const void *panels, *bias;
};

struct DecoderLayer {
  const void *attn_norm, *mlp_norm;
  Product qkv, out, gate_up, down;
  void *k_pool, *v_pool;
  Layer attention;
  float eps;
  int32_t unused;
};

struct Sizes {
  int32_t hidden, inner;
};

// Results that one operation leaves to the next, each of as many rows as the step has tokens.
struct Scratchpad {
  void *normed, *qkv, *mixed, *added, *gate_up, *gated;
};

// A barrier that spins: the wait between operations is shorter than it takes to wake a thread. A
// thread that has waited long lets others run, in case there are more threads than free cores.
struct Barrier {
  int count = 1, arrived = 0, round = 0;

  void wait() {
    if (count == 1) return;
    const int now = __atomic_load_n(&round, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&arrived, 1, __ATOMIC_ACQ_REL) == count) {
      __atomic_store_n(&arrived, 0, __ATOMIC_RELAXED);
      __atomic_store_n(&round, now + 1, __ATOMIC_RELEASE);
      return;
    }
    for (int turns = 0; __atomic_load_n(&round, __ATOMIC_ACQUIRE) == now; turns++) {
      __builtin_ia32_pause();
      if (turns > 2000) sched_yield();
    }
  }
};

// One thread's part; x (tokens, hidden) is the residual stream, changed in place.
template <class T>
static void run_layers(const Step &s, const DecoderLayer *layers, int num_layers, const Sizes &sizes,
                       const Scratchpad &pad, typename T::Element *x, const typename T::Element *cos,
                       const typename T::Element *sin, Barrier &barrier, int thread, int count) {
  typedef typename T::Element E;
  const long rows = s.num_tokens, first = rows * thread / count, last = rows * (thread + 1) / count;
  const int q_width = s.kv_heads * s.group * s.head_dim, kv_width = s.kv_heads * s.head_dim;
  const int stride = q_width + 2 * kv_width;
  E *normed = (E *)pad.normed, *qkv = (E *)pad.qkv, *mixed = (E *)pad.mixed, *added = (E *)pad.added;
  E *gate_up = (E *)pad.gate_up, *gated = (E *)pad.gated;
  const auto multiply = [&](const E *in, const Product &by, E *to, long size, long outputs) {
    linear_share(in, (const E *)by.panels, (const E *)by.bias, to, rows, size, outputs, thread, count);
    barrier.wait();
  };
  for (int i = 0; i < num_layers; i++) {
    const DecoderLayer &layer = layers[i];
    norm_rows(x, i ? added : nullptr, (const E *)layer.attn_norm, normed, first, last, sizes.hidden, layer.eps);
    barrier.wait();
    multiply(normed, layer.qkv, qkv, sizes.hidden, stride);
    store_tokens(s, layer.attention, qkv, qkv + q_width, qkv + q_width + kv_width, stride, cos, sin,
                 (E *)layer.k_pool, (E *)layer.v_pool, (int)first, (int)last);
    barrier.wait();
    attend<T>(s, layer.attention.window, qkv, stride, (const word *)layer.k_pool, (const word *)layer.v_pool, mixed,
              thread, count);
    barrier.wait();
    multiply(mixed, layer.out, added, q_width, sizes.hidden);
    norm_rows(x, added, (const E *)layer.mlp_norm, normed, first, last, sizes.hidden, layer.eps);
    barrier.wait();
#if defined(PPINFER_AVX512BF16)
    if constexpr (T::PER_WORD == 2) {  // `inner` is a multiple of 32, being the size of `down`
      gated_share(normed, (const E *)layer.gate_up.panels, (const E *)layer.gate_up.bias, gated, rows, sizes.hidden,
                  sizes.inner, thread, count);
      barrier.wait();
    } else
#endif
    {
      multiply(normed, layer.gate_up, gate_up, sizes.hidden, 2 * sizes.inner);
      gate_rows(gate_up, gated, first, last, sizes.inner);
      barrier.wait();
    }
    multiply(gated, layer.down, added, sizes.inner, sizes.hidden);
  }
  add_rows(x, added, first, last, sizes.hidden);
}
