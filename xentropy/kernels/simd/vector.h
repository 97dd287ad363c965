// Vectors of the tier's native width, and the operations that GNU vector types lack.
//
// GNU vector types provide + - * / and comparisons. The functions below add the rest: fused
// multiply-add, partial and non-temporal memory access, scaling by 2^n. Intrinsics, and #if on the
// instruction set, occur only here, in vector16.h and in vector_lanes.h.
//
// No vector is wider than the hardware's: GCC splits such vectors into scalars.
#pragma once
#include <stddef.h>
#include <stdint.h>

#if defined(__SSE2__)
// GCC 12 warns of the deliberately undefined operands in its own header.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define XENTROPY_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define XENTROPY_VECTOR_BYTES 32
#else
#define XENTROPY_VECTOR_BYTES 16
#endif

#define XENTROPY_INLINE_MEMBER inline __attribute__((always_inline))
#define XENTROPY_INLINE static XENTROPY_INLINE_MEMBER
#define XENTROPY_INLINE_LAMBDA __attribute__((always_inline))
#define XENTROPY_QUOTE(name) #name
#define XENTROPY_STRING(name) XENTROPY_QUOTE(name)

namespace xentropy {
namespace XENTROPY_TIER {

constexpr size_t kVectorBytes = XENTROPY_VECTOR_BYTES;
constexpr size_t kLineBytes = 64;

#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
constexpr bool kHasFma = true;
#else
constexpr bool kHasFma = false;
#endif

template <class T>
struct Simd;
template <>
struct Simd<float> {
  typedef float V __attribute__((vector_size(kVectorBytes)));
  typedef float Unaligned __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
  typedef int32_t I __attribute__((vector_size(kVectorBytes)));
};
template <>
struct Simd<double> {
  typedef double V __attribute__((vector_size(kVectorBytes)));
  typedef double Unaligned __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
  typedef int64_t I __attribute__((vector_size(kVectorBytes)));
};

template <class T>
using Vec = typename Simd<T>::V;
template <class T>
using IntVec = typename Simd<T>::I;
using VF = Vec<float>;
using VD = Vec<double>;

template <class T>
constexpr size_t kLanes = kVectorBytes / sizeof(T);
template <class T>
constexpr size_t kLine = kLineBytes / sizeof(T);  // elements of a cache line

template <class T>
XENTROPY_INLINE Vec<T> splat(T value) {
  return Vec<T>{} + value;
}
template <class T>
XENTROPY_INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename Simd<T>::Unaligned*>(p);
}
template <class T>
XENTROPY_INLINE void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename Simd<T>::Unaligned*>(p) = v;
}

XENTROPY_INLINE void prefetch_l1(const void* p) { __builtin_prefetch(p, 0, 3); }
XENTROPY_INLINE void prefetch_l2(const void* p) { __builtin_prefetch(p, 0, 2); }
XENTROPY_INLINE void prefetch_write(void* p) { __builtin_prefetch(p, 1, 3); }

// --- partial access: the first n lanes, 0 < n <= lanes; memory beyond them is not accessed ---

#if defined(__AVX512F__)
XENTROPY_INLINE VF load_first(const float* p, size_t n, VF fill) {
  return (VF)_mm512_mask_loadu_ps((__m512)fill, (__mmask16)((1u << n) - 1), p);
}
XENTROPY_INLINE VD load_first(const double* p, size_t n, VD fill) {
  return (VD)_mm512_mask_loadu_pd((__m512d)fill, (__mmask8)((1u << n) - 1), p);
}
XENTROPY_INLINE void store_first(float* p, VF v, size_t n) {
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
}
XENTROPY_INLINE void store_first(double* p, VD v, size_t n) {
  _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), (__m512d)v);
}
#elif defined(__AVX2__)
XENTROPY_INLINE __m256i first_mask(size_t n, float) {
  return (__m256i)(IntVec<float>{0, 1, 2, 3, 4, 5, 6, 7} < (int32_t)n);
}
XENTROPY_INLINE __m256i first_mask(size_t n, double) {
  return (__m256i)(IntVec<double>{0, 1, 2, 3} < (int64_t)n);
}
XENTROPY_INLINE VF load_first(const float* p, size_t n, VF fill) {
  const __m256i mask = first_mask(n, 0.0f);
  return (VF)_mm256_blendv_ps((__m256)fill, _mm256_maskload_ps(p, mask), (__m256)mask);
}
XENTROPY_INLINE VD load_first(const double* p, size_t n, VD fill) {
  const __m256i mask = first_mask(n, 0.0);
  return (VD)_mm256_blendv_pd((__m256d)fill, _mm256_maskload_pd(p, mask), (__m256d)mask);
}
XENTROPY_INLINE void store_first(float* p, VF v, size_t n) {
  _mm256_maskstore_ps(p, first_mask(n, 0.0f), (__m256)v);
}
XENTROPY_INLINE void store_first(double* p, VD v, size_t n) {
  _mm256_maskstore_pd(p, first_mask(n, 0.0), (__m256d)v);
}
#else
template <class T>
XENTROPY_INLINE Vec<T> load_first(const T* p, size_t n, Vec<T> fill) {
  for (size_t i = 0; i < kLanes<T>; ++i) {
    if (i < n) fill[i] = p[i];
  }
  return fill;
}
template <class T>
XENTROPY_INLINE void store_first(T* p, Vec<T> v, size_t n) {
  for (size_t i = 0; i < kLanes<T>; ++i) {
    if (i < n) p[i] = v[i];
  }
}
#endif

// --- stream: a non-temporal store; the address is aligned to the vector ---

#if defined(__AVX512F__)
XENTROPY_INLINE void stream(float* p, VF v) { _mm512_stream_ps(p, (__m512)v); }
XENTROPY_INLINE void stream(double* p, VD v) { _mm512_stream_pd(p, (__m512d)v); }
#elif defined(__AVX2__)
XENTROPY_INLINE void stream(float* p, VF v) { _mm256_stream_ps(p, (__m256)v); }
XENTROPY_INLINE void stream(double* p, VD v) { _mm256_stream_pd(p, (__m256d)v); }
#elif defined(__SSE2__)
XENTROPY_INLINE void stream(float* p, VF v) { _mm_stream_ps(p, (__m128)v); }
XENTROPY_INLINE void stream(double* p, VD v) { _mm_stream_pd(p, (__m128d)v); }
#else
template <class T>
XENTROPY_INLINE void stream(T* p, Vec<T> v) {
  *reinterpret_cast<Vec<T>*>(p) = v;
}
#endif

// Non-temporal stores are weakly ordered: fence before another thread may read them.
XENTROPY_INLINE void stream_fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// --- max(bound, x): x if x is nan, so that a clamp keeps nan ---

#if defined(__AVX512F__)
XENTROPY_INLINE VF max(VF bound, VF x) { return (VF)_mm512_max_ps((__m512)bound, (__m512)x); }
XENTROPY_INLINE VD max(VD bound, VD x) { return (VD)_mm512_max_pd((__m512d)bound, (__m512d)x); }
#elif defined(__AVX2__)
XENTROPY_INLINE VF max(VF bound, VF x) { return (VF)_mm256_max_ps((__m256)bound, (__m256)x); }
XENTROPY_INLINE VD max(VD bound, VD x) { return (VD)_mm256_max_pd((__m256d)bound, (__m256d)x); }
#else
template <class V>
XENTROPY_INLINE V max(V bound, V x) {
  return bound > x ? bound : x;
}
#endif

// --- any(mask): whether a comparison is true in any lane ---

template <class M>
XENTROPY_INLINE bool any(M mask) {  // compilers differ in the type of a comparison of doubles
#if defined(__AVX512F__)
  const __m512i m = (__m512i)mask;
  return sizeof(mask[0]) == 4 ? _mm512_test_epi32_mask(m, m) != 0
                              : _mm512_test_epi64_mask(m, m) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_epi8((__m256i)mask) != 0;
#elif defined(__SSE2__)
  return _mm_movemask_epi8((__m128i)mask) != 0;
#else
  bool found = false;
  for (size_t i = 0; i < sizeof(M) / sizeof(mask[0]); ++i) found |= mask[i] != 0;
  return found;
#endif
}

// --- lanes_larger(x, y): in how many lanes x > y ---

#if defined(__AVX512F__)
XENTROPY_INLINE size_t lanes_larger(VF x, VF y) {
  return size_t(__builtin_popcount(_mm512_cmp_ps_mask((__m512)x, (__m512)y, _CMP_GT_OQ)));
}
XENTROPY_INLINE size_t lanes_larger(VD x, VD y) {
  return size_t(__builtin_popcount(_mm512_cmp_pd_mask((__m512d)x, (__m512d)y, _CMP_GT_OQ)));
}
#elif defined(__AVX2__)
XENTROPY_INLINE size_t lanes_larger(VF x, VF y) {
  return size_t(__builtin_popcount(unsigned(_mm256_movemask_ps((__m256)(x > y)))));
}
XENTROPY_INLINE size_t lanes_larger(VD x, VD y) {
  return size_t(__builtin_popcount(unsigned(_mm256_movemask_pd((__m256d)(x > y)))));
}
#else
template <class V>
XENTROPY_INLINE size_t lanes_larger(V x, V y) {
  const auto larger = x > y;
  size_t found = 0;
  for (size_t i = 0; i < sizeof(V) / sizeof(x[0]); ++i) found += larger[i] != 0;
  return found;
}
#endif

// --- first_true(mask): the first lane in which a comparison is true, or the number of lanes ---

template <class M>
XENTROPY_INLINE size_t first_true(M mask) {
  constexpr size_t kSize = sizeof(mask[0]);
#if defined(__AVX512F__)
  const __m512i m = (__m512i)mask;
  const unsigned found = kSize == 4 ? _mm512_test_epi32_mask(m, m) : _mm512_test_epi64_mask(m, m);
  return __builtin_ctz(found | 1u << sizeof(M) / kSize);
#elif defined(__AVX2__)
  const uint64_t found = uint32_t(_mm256_movemask_epi8((__m256i)mask));
  return __builtin_ctzll(found | uint64_t(1) << 32) / kSize;
#elif defined(__SSE2__)
  return __builtin_ctz(unsigned(_mm_movemask_epi8((__m128i)mask)) | 1u << 16) / kSize;
#else
  size_t i = 0;
  while (i < sizeof(M) / kSize && mask[i] == 0) ++i;
  return i;
#endif
}

// --- fma(a, b, c) = a * b + c, rounded once where kHasFma ---

#if defined(__AVX512F__)
XENTROPY_INLINE VF fma(VF a, VF b, VF c) {
  return (VF)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
XENTROPY_INLINE VD fma(VD a, VD b, VD c) {
  return (VD)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
}
#elif defined(__AVX2__)
XENTROPY_INLINE VF fma(VF a, VF b, VF c) {
  return (VF)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
XENTROPY_INLINE VD fma(VD a, VD b, VD c) {
  return (VD)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
}
#elif defined(__ARM_NEON)
XENTROPY_INLINE VF fma(VF a, VF b, VF c) {
  return (VF)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
XENTROPY_INLINE VD fma(VD a, VD b, VD c) {
  return (VD)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
}
#else
template <class V>
XENTROPY_INLINE V fma(V a, V b, V c) {
  return a * b + c;
}
#endif

// --- ldexp(p, t) = p * 2^n, where t = n + kRoundToInteger<T> was rounded to an integer n ---
//
// kRoundToInteger is 1.5 * 2^(mantissa bits), plus the exponent bias where there is no scalef.
// Adding it rounds to the nearest integer and leaves that integer in the low bits. scalef takes n
// itself and rounds subnormal results. Without it n + bias is offset into the exponent field, so n
// must be in [-bias, bias], and 2^-bias becomes 0.

#if defined(__AVX512F__)
constexpr bool kHasScalef = true;
#else
constexpr bool kHasScalef = false;
#endif

template <class T>
struct Exponent;
template <>
struct Exponent<float> {
  static constexpr float kBias = 127, kMagic = 0x1.8p23f;
  static constexpr int kMantissaBits = 23;
};
template <>
struct Exponent<double> {
  static constexpr double kBias = 1023, kMagic = 0x1.8p52;
  static constexpr int kMantissaBits = 52;
};
template <class T>
constexpr T kRoundToInteger = Exponent<T>::kMagic + (kHasScalef ? 0 : Exponent<T>::kBias);

#if defined(__AVX512F__)
XENTROPY_INLINE VF ldexp(VF p, VF t) {
  return (VF)_mm512_scalef_ps((__m512)p, (__m512)(t - kRoundToInteger<float>));
}
XENTROPY_INLINE VD ldexp(VD p, VD t) {
  return (VD)_mm512_scalef_pd((__m512d)p, (__m512d)(t - kRoundToInteger<double>));
}
#else
XENTROPY_INLINE VF ldexp(VF p, VF t) { return p * (VF)((IntVec<float>)t << 23); }
XENTROPY_INLINE VD ldexp(VD p, VD t) { return p * (VD)((IntVec<double>)t << 52); }
#endif

}  // namespace XENTROPY_TIER
}  // namespace xentropy
