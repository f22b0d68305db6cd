// What the entry points do for either element type. bf16's is compiled in a file of its own, so that
// a second core makes the first use shorter.
#pragma once
#include "attention.h"
#include "exports.h"
#include "rows.h"
#include "store.h"
#if !defined(PPINFER_PLAIN)
#include "cores.h"
#include "layers.h"
#endif
#include <omp.h>

template <class T>
void attention(const Step &s, const Layer &layer, typename T::Element *q, typename T::Element *k,
               const typename T::Element *v, long stride, const typename T::Element *cos,
               const typename T::Element *sin, typename T::Element *k_pool, typename T::Element *v_pool,
               typename T::Element *out, int threads) {
  const word *keys = (const word *)k_pool, *values = (const word *)v_pool;
#pragma omp parallel num_threads(threads)
  {
    const int thread = omp_get_thread_num(), count = omp_get_num_threads();
    const long tokens = s.num_tokens;
    if (k) {
      store_tokens(s, layer, cos ? q : nullptr, k, v, stride, cos, sin, k_pool, v_pool,
                   (int)(tokens * thread / count), (int)(tokens * (thread + 1) / count));
#pragma omp barrier
    }
    if (out) attend<T>(s, layer.window, q, stride, keys, values, out, thread, count);
  }
}

#if !defined(PPINFER_PLAIN)
template <class E>
void linear(const E *x, const E *panels, const E *bias, E *out, long rows, long size, long outputs, int threads) {
  threads = useful(threads, (double)rows * size * outputs / 5);
#pragma omp parallel num_threads(threads) if (threads > 1)
  linear_share(x, panels, bias, out, rows, size, outputs, omp_get_thread_num(), omp_get_num_threads());
}

template <class T>
void all_layers(const Step &s, const DecoderLayer *layers, int num_layers, const Sizes &sizes, const Scratchpad &pad,
                typename T::Element *x, const typename T::Element *cos, const typename T::Element *sin, int threads) {
  Barrier barrier;
  Cores cores;
#pragma omp parallel num_threads(threads)
  {
    const int thread = omp_get_thread_num(), count = omp_get_num_threads();
    if (thread) cores.settle();
#pragma omp single
    barrier.count = count;
    run_layers<T>(s, layers, num_layers, sizes, pad, x, cos, sin, barrier, thread, count);
  }
}
#endif

#define ATTENTION_OF(T, E) \
  template void attention<T>(const Step &, const Layer &, E *, E *, const E *, long, const E *, const E *, E *, E *, E *, int)
#define LINEAR_OF(E) template void linear<E>(const E *, const E *, const E *, E *, long, long, long, int)
#define LAYERS_OF(T, E) \
  template void all_layers<T>(const Step &, const DecoderLayer *, int, const Sizes &, const Scratchpad &, E *, \
                              const E *, const E *, int)
