// The entry points: plain C, called through ctypes. Each shares its rows out over `threads` threads.
#include "typed.h"

extern ATTENTION_OF(Bf16, bf16);
#if defined(PPINFER_AVX512BF16)
extern LINEAR_OF(bf16);
extern LAYERS_OF(Bf16, bf16);
#endif

// Once a process, before anything else; whether the operating system allows what this path needs.
EXPORT int ppinfer_begin() {
#if defined(PPINFER_AMX)
  return allow_tiles();
#else
  return 1;
#endif
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
// x (rows, size) times panels (see product.h) plus bias, if any, to (rows, outputs).
EXPORT void ppinfer_linear_fp32(void *x, void *panels, void *bias, void *out, long rows, long size, long outputs,
                                int threads) {
  linear((const float *)x, (const float *)panels, (const float *)bias, (float *)out, rows, size, outputs, threads);
}

#if defined(PPINFER_AVX512BF16)
// The same in bf16 (see linear.h); size is a multiple of 32.
EXPORT void ppinfer_linear_bf16(void *x, void *panels, void *bias, void *out, long rows, long size, long outputs,
                                int threads) {
  linear((const bf16 *)x, (const bf16 *)panels, (const bf16 *)bias, (bf16 *)out, rows, size, outputs, threads);
}
#endif

// The residual stream x (tokens, hidden) through all layers of a stage, in place; for types that
// have a linear.
EXPORT void ppinfer_layers(int is_bf16, const Step *s, const DecoderLayer *layers, int num_layers, const Sizes *sizes,
                           const Scratchpad *pad, void *x, void *cos, void *sin, int threads) {
  if (!is_bf16)
    all_layers<Fp32>(*s, layers, num_layers, *sizes, *pad, (float *)x, (float *)cos, (float *)sin, threads);
#if defined(PPINFER_AVX512BF16)
  else
    all_layers<Bf16>(*s, layers, num_layers, *sizes, *pad, (bf16 *)x, (bf16 *)cos, (bf16 *)sin, threads);
#endif
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
