// The entry points: plain C, called through ctypes. Each shares its rows out over `threads` threads.
#include "attention.h"
#include "exports.h"
#include "rows.h"
#include "store.h"
#if !defined(PPINFER_PLAIN)
#include "cores.h"
#include "layers.h"
#endif
#include <omp.h>

// Once a process, before anything else; whether the operating system allows what this path needs.
EXPORT int ppinfer_begin() {
#if defined(PPINFER_AMX)
  return allow_tiles();
#else
  return 1;
#endif
}

template <class T>
static void attention(const Step &s, const Layer &layer, typename T::Element *q, typename T::Element *k,
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

// Rotates (where cos is given), stores (where k is) and attends (where out is). q, k and v are rows
// of heads, `stride` elements from token to token; out is (tokens, heads, head_dim).
EXPORT void ppinfer_attention(int is_bf16, const Step *s, const Layer *layer, void *q, void *k, void *v, long stride,
                              void *cos, void *sin, void *k_pool, void *v_pool, void *out, int threads) {
  if (is_bf16)
    attention<Bf16>(*s, *layer, (bf16 *)q, (bf16 *)k, (bf16 *)v, stride, (bf16 *)cos, (bf16 *)sin, (bf16 *)k_pool,
                    (bf16 *)v_pool, (bf16 *)out, threads);
  else
    attention<Fp32>(*s, *layer, (float *)q, (float *)k, (float *)v, stride, (float *)cos, (float *)sin,
                    (float *)k_pool, (float *)v_pool, (float *)out, threads);
}

// Adds `addend` to x where there is one; out becomes the norm of x. All (rows, size).
EXPORT void ppinfer_norm(int is_bf16, void *x, void *addend, void *weight, void *out, long rows, int size, float eps,
                         int threads) {
  threads = useful(threads, (double)rows * size);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const long thread = omp_get_thread_num(), count = omp_get_num_threads();
    const long first = rows * thread / count, last = rows * (thread + 1) / count;
    if (is_bf16) norm_rows((bf16 *)x, (bf16 *)addend, (bf16 *)weight, (bf16 *)out, first, last, size, eps);
    else norm_rows((float *)x, (float *)addend, (float *)weight, (float *)out, first, last, size, eps);
  }
}

// (rows, 2 * inner) to (rows, inner).
EXPORT void ppinfer_gate(int is_bf16, void *gate_up, void *out, long rows, int inner, int threads) {
  threads = useful(threads, (double)rows * inner * 4);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const long thread = omp_get_thread_num(), count = omp_get_num_threads();
    const long first = rows * thread / count, last = rows * (thread + 1) / count;
    if (is_bf16) gate_rows((bf16 *)gate_up, (bf16 *)out, first, last, inner);
    else gate_rows((float *)gate_up, (float *)out, first, last, inner);
  }
}

#if !defined(PPINFER_PLAIN)
template <class E>
static void linear(const void *x, const void *panels, const void *bias, void *out, long rows, long size, long outputs,
                   int threads) {
  threads = useful(threads, (double)rows * size * outputs / 5);
#pragma omp parallel num_threads(threads) if (threads > 1)
  linear_share((const E *)x, (const E *)panels, (const E *)bias, (E *)out, rows, size, outputs, omp_get_thread_num(),
               omp_get_num_threads());
}

// x (rows, size) times panels (see product.h) plus bias, if any, to (rows, outputs).
EXPORT void ppinfer_linear_fp32(void *x, void *panels, void *bias, void *out, long rows, long size, long outputs,
                                int threads) {
  linear<float>(x, panels, bias, out, rows, size, outputs, threads);
}

#if defined(PPINFER_AVX512BF16)
// The same in bf16 (see linear.h); size is a multiple of 32.
EXPORT void ppinfer_linear_bf16(void *x, void *panels, void *bias, void *out, long rows, long size, long outputs,
                                int threads) {
  linear<bf16>(x, panels, bias, out, rows, size, outputs, threads);
}
#endif

// The residual stream x (tokens, hidden) through all layers of a stage, in place; for types that
// have a linear.
EXPORT void ppinfer_layers(int is_bf16, const Step *s, const DecoderLayer *layers, int num_layers, const Sizes *sizes,
                           const Scratchpad *pad, void *x, void *cos, void *sin, int threads) {
  Barrier barrier;
  Cores cores;
#pragma omp parallel num_threads(threads)
  {
    const int thread = omp_get_thread_num(), count = omp_get_num_threads();
    if (thread) cores.settle();
#pragma omp single
    barrier.count = count;
    if (!is_bf16)
      run_layers<Fp32>(*s, layers, num_layers, *sizes, *pad, (float *)x, (float *)cos, (float *)sin, barrier, thread,
                       count);
#if defined(PPINFER_AVX512BF16)
    else
      run_layers<Bf16>(*s, layers, num_layers, *sizes, *pad, (bf16 *)x, (bf16 *)cos, (bf16 *)sin, barrier, thread,
                       count);
#endif
  }
}
#endif

// A plain read of `size` floats, for comparison: as fast as asking for lines ahead makes it.
EXPORT float ppinfer_read(const float *data, long size, int threads) {
  const long step = 4 * LANES, ahead = 6 * step;  // 1.5 KB
  float result = 0;
#pragma omp parallel num_threads(threads) reduction(+ : result)
  {
    const long lines = size / step, thread = omp_get_thread_num(), count = omp_get_num_threads();
    F sums[4] = {zero(), zero(), zero(), zero()};
    for (long i = lines * thread / count; i < lines * (thread + 1) / count; i++) {
      const float *from = data + i * step;
      UNROLL for (int j = 0; j < 4; j++) prefetch_soon(from + ahead + j * LANES);
      UNROLL for (int j = 0; j < 4; j++) sums[j] = sums[j] + load(from + j * LANES);
    }
    result += sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
  }
  return result;
}
