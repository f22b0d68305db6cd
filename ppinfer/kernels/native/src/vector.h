// Sixteen floats on every instruction set, and pairs of bf16 as attention multiplies them.
//
// A path is chosen by one of PPINFER_AMX, PPINFER_AVX512BF16, PPINFER_AVX512, PPINFER_AVX2 and
// PPINFER_PLAIN.
// Products and sums are fused only where fma() says so (compile with -ffp-contract=off), so a
// value's bits do not depend on the code around it.
#pragma once
#include <stdint.h>
#include <string.h>
#if defined(PPINFER_AMX)
#define PPINFER_AVX512BF16  // and matrix registers where they fit
#endif
#if !defined(PPINFER_PLAIN)
#include <immintrin.h>
#endif

#define INLINE_MEMBER inline __attribute__((always_inline))
#define INLINE static INLINE_MEMBER
#define UNROLL _Pragma("GCC unroll 8")
#define UNROLL_ROWS _Pragma("GCC unroll 12")

typedef uint16_t bf16;
typedef uint32_t word;  // one float, or two bf16 that are multiplied and added together

static const int LANES = 16;

INLINE uint32_t bits_of(float x) { uint32_t u; memcpy(&u, &x, 4); return u; }
INLINE float float_of(uint32_t u) { float x; memcpy(&x, &u, 4); return x; }
INLINE void prefetch(const void *p) { __builtin_prefetch(p, 0, 2); }       // into the second-level cache
INLINE void prefetch_soon(const void *p) { __builtin_prefetch(p, 0, 3); }  // into the first-level cache

#if defined(PPINFER_AVX512BF16) || defined(PPINFER_AVX512)
// ------------------------------------------------------------------------------- AVX-512
struct F { __m512 v; };
struct Words { __m512i v; };
static const int MAX_ROWS = 8, MAX_VECTORS = 4, MAX_SUMS = 24;  // of a micro-kernel: 24 of 32 registers

INLINE F zero() { return {_mm512_setzero_ps()}; }
INLINE F all(float x) { return {_mm512_set1_ps(x)}; }
INLINE F load(const float *p) { return {_mm512_loadu_ps(p)}; }
INLINE void store(float *p, F x) { _mm512_storeu_ps(p, x.v); }
INLINE F operator+(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
INLINE F operator-(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
INLINE F operator*(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
INLINE F operator/(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
INLINE F fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
INLINE F larger(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }  // b where either is no number
INLINE F round_to_int(F x) { return {_mm512_roundscale_ps(x.v, 8)}; }
INLINE __mmask16 first_lanes(int n) { return (__mmask16)((1u << n) - 1); }
INLINE F load_some(const float *p, int n) { return {_mm512_maskz_loadu_ps(first_lanes(n), p)}; }
INLINE void store_some(float *p, F x, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), x.v); }
INLINE F widen(__m256i x) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16))}; }
INLINE __m256i narrow(F x) {
#if defined(PPINFER_AVX512BF16)
  return (__m256i)_mm512_cvtneps_pbh(x.v);
#else
  const __m512i u = _mm512_castps_si512(x.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  __m512i r = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
  r = _mm512_mask_or_epi32(r, nan, u, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16));
#endif
}
INLINE F load(const bf16 *p) { return widen(_mm256_loadu_si256((const __m256i *)p)); }
INLINE void store(bf16 *p, F x) { _mm256_storeu_si256((__m256i *)p, narrow(x)); }
INLINE F load_some(const bf16 *p, int n) { return widen(_mm256_maskz_loadu_epi16(first_lanes(n), p)); }
INLINE void store_some(bf16 *p, F x, int n) { _mm256_mask_storeu_epi16(p, first_lanes(n), narrow(x)); }
INLINE F rounded_to_bf16(F x) { return widen(narrow(x)); }
// Lanes low to high of x; minus infinity elsewhere.
INLINE F keep(F x, int low, int high) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __mmask16 in = _mm512_cmp_epi32_mask(lane, _mm512_set1_epi32(low), _MM_CMPINT_NLT) &
                       _mm512_cmp_epi32_mask(lane, _mm512_set1_epi32(high), _MM_CMPINT_LE);
  return {_mm512_mask_blend_ps(in, _mm512_set1_ps(-__builtin_inff()), x.v)};
}
INLINE void split(F x, F &whole, F &fraction) {  // to the nearest integer and what is left
  fraction = {_mm512_reduce_ps(x.v, 8)};
  whole = x - fraction;
}
INLINE F times_power_of_two(F x, F n) { return {_mm512_scalef_ps(x.v, n.v)}; }
INLINE F times_power_of_two(F x, F n, F at, float limit) {  // 0 where at < limit
  return {_mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(at.v, _mm512_set1_ps(limit), _CMP_NLT_UQ), x.v, n.v)};
}
INLINE F zero_below(F x, F at, float limit) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(at.v, _mm512_set1_ps(limit), _CMP_NLT_UQ), x.v)};
}
INLINE bool any_above(F x, float limit) {
  return _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(limit), _CMP_GT_OQ) != 0;
}
INLINE Words load_words(const word *p) { return {_mm512_loadu_si512(p)}; }
INLINE F as_floats(Words x) { return {_mm512_castsi512_ps(x.v)}; }
INLINE F low_halves(Words x) { return {_mm512_castsi512_ps(_mm512_slli_epi32(x.v, 16))}; }
INLINE F high_halves(Words x) { return {_mm512_castsi512_ps(_mm512_and_si512(x.v, _mm512_set1_epi32(0xffff0000)))}; }

#elif defined(PPINFER_AVX2)
// ------------------------------------------------------------------------------- AVX2 and FMA
struct F { __m256 a, b; };
struct Words { __m256i a, b; };
static const int MAX_ROWS = 4, MAX_VECTORS = 4, MAX_SUMS = 6;  // 12 of 16 registers

INLINE F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
INLINE F all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
INLINE F load(const float *p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
INLINE void store(float *p, F x) { _mm256_storeu_ps(p, x.a); _mm256_storeu_ps(p + 8, x.b); }
INLINE F operator+(F a, F b) { return {_mm256_add_ps(a.a, b.a), _mm256_add_ps(a.b, b.b)}; }
INLINE F operator-(F a, F b) { return {_mm256_sub_ps(a.a, b.a), _mm256_sub_ps(a.b, b.b)}; }
INLINE F operator*(F a, F b) { return {_mm256_mul_ps(a.a, b.a), _mm256_mul_ps(a.b, b.b)}; }
INLINE F operator/(F a, F b) { return {_mm256_div_ps(a.a, b.a), _mm256_div_ps(a.b, b.b)}; }
INLINE F fma(F a, F b, F c) { return {_mm256_fmadd_ps(a.a, b.a, c.a), _mm256_fmadd_ps(a.b, b.b, c.b)}; }
INLINE F larger(F a, F b) { return {_mm256_max_ps(a.a, b.a), _mm256_max_ps(a.b, b.b)}; }
INLINE F round_to_int(F x) { return {_mm256_round_ps(x.a, 8), _mm256_round_ps(x.b, 8)}; }
INLINE __m256 widen(__m128i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }
INLINE __m128i narrow(__m256 x) {
  const __m256i u = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  __m256i r = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  r = _mm256_blendv_epi8(r, _mm256_or_si256(u, _mm256_set1_epi32(0x400000)), nan);
  r = _mm256_srli_epi32(r, 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
}
INLINE F load(const bf16 *p) {
  return {widen(_mm_loadu_si128((const __m128i *)p)), widen(_mm_loadu_si128((const __m128i *)(p + 8)))};
}
INLINE void store(bf16 *p, F x) {
  _mm_storeu_si128((__m128i *)p, narrow(x.a));
  _mm_storeu_si128((__m128i *)(p + 8), narrow(x.b));
}
INLINE F rounded_to_bf16(F x) { return {widen(narrow(x.a)), widen(narrow(x.b))}; }
INLINE F keep(F x, int low, int high) {
  const __m256 none = _mm256_set1_ps(-__builtin_inff());
  const __m256i lo = _mm256_set1_epi32(low - 1), hi = _mm256_set1_epi32(high + 1);
  const __m256i p = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), q = _mm256_add_epi32(p, _mm256_set1_epi32(8));
  const __m256i inp = _mm256_and_si256(_mm256_cmpgt_epi32(p, lo), _mm256_cmpgt_epi32(hi, p));
  const __m256i inq = _mm256_and_si256(_mm256_cmpgt_epi32(q, lo), _mm256_cmpgt_epi32(hi, q));
  return {_mm256_blendv_ps(none, x.a, _mm256_castsi256_ps(inp)), _mm256_blendv_ps(none, x.b, _mm256_castsi256_ps(inq))};
}
INLINE __m256 power(__m256 n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
INLINE F times_power_of_two(F x, F n) { return {_mm256_mul_ps(x.a, power(n.a)), _mm256_mul_ps(x.b, power(n.b))}; }
INLINE F zero_below(F x, F at, float limit) {
  const __m256 l = _mm256_set1_ps(limit);
  return {_mm256_and_ps(x.a, _mm256_cmp_ps(at.a, l, _CMP_NLT_UQ)), _mm256_and_ps(x.b, _mm256_cmp_ps(at.b, l, _CMP_NLT_UQ))};
}
INLINE bool any_above(F x, float limit) {
  return _mm256_movemask_ps(_mm256_cmp_ps(_mm256_max_ps(x.a, x.b), _mm256_set1_ps(limit), _CMP_GT_OQ)) != 0;
}
INLINE Words load_words(const word *p) {
  return {_mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)(p + 8))};
}
INLINE F as_floats(Words x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
INLINE F low_halves(Words x) { return {_mm256_castsi256_ps(_mm256_slli_epi32(x.a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(x.b, 16))}; }
INLINE F high_halves(Words x) {
  const __m256i m = _mm256_set1_epi32(0xffff0000);
  return {_mm256_castsi256_ps(_mm256_and_si256(x.a, m)), _mm256_castsi256_ps(_mm256_and_si256(x.b, m))};
}

#else
// ------------------------------------------------------------------------------- any processor
typedef float floats __attribute__((vector_size(64)));
typedef int32_t ints __attribute__((vector_size(64)));
typedef uint32_t uints __attribute__((vector_size(64)));
struct F { floats v; };
struct Words { uints v; };
static const int MAX_ROWS = 2, MAX_VECTORS = 1, MAX_SUMS = 2;

INLINE F zero() { return {floats{}}; }
INLINE F all(float x) { return {floats{} + x}; }
INLINE F load(const float *p) { F x; memcpy(&x.v, p, 64); return x; }
INLINE void store(float *p, F x) { memcpy(p, &x.v, 64); }
INLINE F operator+(F a, F b) { return {a.v + b.v}; }
INLINE F operator-(F a, F b) { return {a.v - b.v}; }
INLINE F operator*(F a, F b) { return {a.v * b.v}; }
INLINE F operator/(F a, F b) { return {a.v / b.v}; }
INLINE F fma(F a, F b, F c) { return {a.v * b.v + c.v}; }  // two roundings
INLINE F larger(F a, F b) { return {a.v > b.v ? a.v : b.v}; }
INLINE F round_to_int(F x) {  // of at most 2^22
  const floats big = floats{} + 12582912.0f;
  return {(x.v + big) - big};
}
INLINE F load(const bf16 *p) { F x; for (int i = 0; i < LANES; i++) x.v[i] = float_of((uint32_t)p[i] << 16); return x; }
INLINE bf16 narrow(float x) {
  const uint32_t u = bits_of(x);
  if (x != x) return (bf16)((u | 0x400000) >> 16);
  return (bf16)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
INLINE void store(bf16 *p, F x) { for (int i = 0; i < LANES; i++) p[i] = narrow(x.v[i]); }
INLINE F rounded_to_bf16(F x) { for (int i = 0; i < LANES; i++) x.v[i] = float_of((uint32_t)narrow(x.v[i]) << 16); return x; }
INLINE F keep(F x, int low, int high) {
  const ints lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const floats none = floats{} - __builtin_inff();
  return {(lane >= low) & (lane <= high) ? x.v : none};
}
INLINE F times_power_of_two(F x, F n) {
  const ints e = (__builtin_convertvector(n.v, ints) + 127) << 23;
  return {x.v * (floats)e};
}
INLINE F zero_below(F x, F at, float limit) { return {at.v < limit ? floats{} : x.v}; }
INLINE bool any_above(F x, float limit) {
  for (int i = 0; i < LANES; i++)
    if (x.v[i] > limit) return true;
  return false;
}
INLINE Words load_words(const word *p) { Words x; memcpy(&x.v, p, 64); return x; }
INLINE F as_floats(Words x) { return {(floats)x.v}; }
INLINE F low_halves(Words x) { return {(floats)(x.v << 16)}; }
INLINE F high_halves(Words x) { return {(floats)(x.v & 0xffff0000u)}; }
#endif

#if defined(PPINFER_AVX2) || defined(PPINFER_PLAIN)
template <class E> INLINE F load_some(const E *p, int n) {
  E some[LANES] = {};
  for (int i = 0; i < n; i++) some[i] = p[i];
  return load(some);
}
template <class E> INLINE void store_some(E *p, F x, int n) {
  E some[LANES];
  store(some, x);
  for (int i = 0; i < n; i++) p[i] = some[i];
}
INLINE void split(F x, F &whole, F &fraction) {
  const F t = larger(all(-126.0f), x);
  whole = round_to_int(t);
  fraction = t - whole;
}
INLINE F times_power_of_two(F x, F n, F at, float limit) { return zero_below(times_power_of_two(x, n), at, limit); }
#endif

// ------------------------------------------------------------------------------- the same for all
#if defined(PPINFER_AVX512BF16) || defined(PPINFER_AVX512)
INLINE float largest(F x) { return _mm512_reduce_max_ps(x.v); }
INLINE float sum(F x) { return _mm512_reduce_add_ps(x.v); }
#else
INLINE float largest(F x) {
  float a[LANES];
  store(a, x);
  for (int n = 8; n > 0; n /= 2)
    for (int i = 0; i < n; i++) a[i] = a[i] > a[i + n] ? a[i] : a[i + n];
  return a[0];
}
INLINE float sum(F x) {
  float a[LANES];
  store(a, x);
  for (int n = 8; n > 0; n /= 2)
    for (int i = 0; i < n; i++) a[i] += a[i + n];
  return a[0];
}
#endif
INLINE F fraction_to_power(F f) {  // 2^f for -0.5 <= f <= 0.5; exactly 1 at 0
  F p = all(0.0001535335904918611f);
  p = fma(p, f, all(0.0013398875016719103f));
  p = fma(p, f, all(0.00961843691766262f));
  p = fma(p, f, all(0.055503323674201965f));
  p = fma(p, f, all(0.24022647738456726f));
  p = fma(p, f, all(0.6931471824645996f));
  return fma(p, f, all(1.0f));
}
// 2^x within two units in the last place; 0 below -126, so nothing is ever subnormal.
INLINE F exp2(F x) {
  F n, f;
  split(x, n, f);
  return times_power_of_two(fraction_to_power(f), n, x, -126.0f);
}
// The same within 1e-4 of the value, a twentieth of what rounding to bf16 may change.
INLINE F rough_exp2(F x) {
  F n, f;
  split(x, n, f);
  F p = fma(all(0.05500893294811249f), f, all(0.2422109991312027f));
  p = fma(p, f, all(0.6932829022407532f));
  return times_power_of_two(fma(p, f, all(1.0f)), n, x, -126.0f);
}
// e^x likewise, for x up to 88.
INLINE F exp(F x) {
  const F t = larger(all(-87.0f), x), n = round_to_int(t * all(1.44269504f));
  F r = fma(n, all(-0.693359375f), t);
  r = fma(n, all(2.12194440e-4f), r);
  return zero_below(times_power_of_two(fraction_to_power(r * all(1.44269504f)), n), x, -87.0f);
}
