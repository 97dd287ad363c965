// The operations of vector.h for 16-bit elements: loads widen to vectors of float32, stores narrow
// with one rounding to nearest even. Stores of whole cache lines take two vectors of float32 at a
// time, which make one full vector in memory.
#pragma once
#include "half.h"
#include "simd/vector.h"

namespace xentropy {
namespace XENTROPY_TIER {

#if defined(__AVX2__)
typedef uint32_t Uint32Vector __attribute__((vector_size(kVectorBytes)));

// v rounded to bfloat16, whose bits are the upper half of each lane. A nan that arithmetic returns
// is quiet, and stays a nan when the lower half is dropped.
XENTROPY_INLINE Uint32Vector rounded_to_bf16(VF v) {
  const Uint32Vector bits = (Uint32Vector)v;
  const Uint32Vector up = bits + (0x7fff + ((bits >> 16) & 1));
  return v == v ? up : bits;
}
#endif

#if defined(__AVX512F__)
typedef __m256i HalfVector;
typedef __m512i HalfPair;
XENTROPY_INLINE HalfVector load_bits(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
XENTROPY_INLINE void store_bits(void* p, HalfVector v) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), v);
}
XENTROPY_INLINE void store_bits(void* p, HalfPair v) { _mm512_storeu_si512(p, v); }
XENTROPY_INLINE void stream_bits(void* p, HalfPair v) {
  _mm512_stream_si512(static_cast<__m512i*>(p), v);
}
XENTROPY_INLINE VF widened(HalfVector h, F16) { return (VF)_mm512_cvtph_ps(h); }
XENTROPY_INLINE VF widened(HalfVector h, BF16) {
  return (VF)_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16);
}
XENTROPY_INLINE HalfVector narrowed(VF v, F16) {
  return _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
}
XENTROPY_INLINE HalfVector narrowed(VF v, BF16) {
  return _mm512_cvtepi32_epi16((__m512i)(rounded_to_bf16(v) >> 16));
}
XENTROPY_INLINE HalfPair narrowed(VF a, VF b, F16) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(narrowed(a, F16())), narrowed(b, F16()), 1);
}
XENTROPY_INLINE HalfPair narrowed(VF a, VF b, BF16) {
  typedef uint16_t Words __attribute__((vector_size(64)));
  constexpr Words odd = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                         33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  return _mm512_permutex2var_epi16((__m512i)rounded_to_bf16(a), (__m512i)odd,
                                   (__m512i)rounded_to_bf16(b));
}
#elif defined(__AVX2__)
typedef __m128i HalfVector;
typedef __m256i HalfPair;
XENTROPY_INLINE HalfVector load_bits(const void* p) {
  return _mm_loadu_si128(static_cast<const __m128i*>(p));
}
XENTROPY_INLINE void store_bits(void* p, HalfVector v) {
  _mm_storeu_si128(static_cast<__m128i*>(p), v);
}
XENTROPY_INLINE void store_bits(void* p, HalfPair v) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), v);
}
XENTROPY_INLINE void stream_bits(void* p, HalfPair v) {
  _mm256_stream_si256(static_cast<__m256i*>(p), v);
}
XENTROPY_INLINE VF widened(HalfVector h, F16) { return (VF)_mm256_cvtph_ps(h); }
XENTROPY_INLINE VF widened(HalfVector h, BF16) {
  return (VF)_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16);
}
XENTROPY_INLINE HalfVector narrowed(VF v, F16) {
  return _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
}
XENTROPY_INLINE HalfPair narrowed(VF a, VF b, F16) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(narrowed(a, F16())), narrowed(b, F16()), 1);
}
XENTROPY_INLINE HalfPair narrowed(VF a, VF b, BF16) {
  const __m256i mixed =
      _mm256_packus_epi32((__m256i)(rounded_to_bf16(a) >> 16), (__m256i)(rounded_to_bf16(b) >> 16));
  return _mm256_permute4x64_epi64(mixed, 0xd8);
}
XENTROPY_INLINE HalfVector narrowed(VF v, BF16) {
  return _mm256_castsi256_si128(narrowed(v, v, BF16()));
}
#endif

#if defined(__AVX2__)
template <class S, class = decltype(S::bits)>
XENTROPY_INLINE VF load(const S* p) {
  return widened(load_bits(p), S());
}
template <class S, class = decltype(S::bits)>
XENTROPY_INLINE void store(S* p, VF v) {
  store_bits(p, narrowed(v, S()));
}
template <class S, class = decltype(S::bits)>
XENTROPY_INLINE void store_pair(S* p, VF a, VF b) {
  store_bits(p, narrowed(a, b, S()));
}
template <class S, class = decltype(S::bits)>
XENTROPY_INLINE void stream_pair(S* p, VF a, VF b) {
  stream_bits(p, narrowed(a, b, S()));
}
#else
template <class S, class = decltype(S::bits)>
XENTROPY_INLINE VF load(const S* p) {
  VF v;
  for (size_t i = 0; i < kLanes<float>; ++i) v[i] = value_of(p[i]);
  return v;
}
template <class S, class = decltype(S::bits)>
XENTROPY_INLINE void store(S* p, VF v) {
  for (size_t i = 0; i < kLanes<float>; ++i) set_value(p + i, v[i]);
}
template <class S, class = decltype(S::bits)>
XENTROPY_INLINE void store_pair(S* p, VF a, VF b) {
  store(p, a);
  store(p + kLanes<float>, b);
}
template <class S, class = decltype(S::bits)>
XENTROPY_INLINE void stream_pair(S* p, VF a, VF b) {
  store_pair(p, a, b);
}
#endif

template <class S, class = decltype(S::bits)>
XENTROPY_INLINE VF load_first(const S* p, size_t n, VF fill) {
  for (size_t i = 0; i < n; ++i) fill[i] = value_of(p[i]);
  return fill;
}
template <class S, class = decltype(S::bits)>
XENTROPY_INLINE void store_first(S* p, VF v, size_t n) {
  S all[kLanes<float>];
  store(all, v);
  for (size_t i = 0; i < n; ++i) p[i] = all[i];
}

// Stores f(i), the vector of elements from i on, for i = 0, L, ... of one cache line at p.
template <class S, class F>
XENTROPY_INLINE void store_line(S* p, const F& f) {
  constexpr size_t L = kLanes<Arithmetic<S>>;
  if constexpr (sizeof(S) == 2) {
    for (size_t q = 0; q < kLine<S>; q += 2 * L) store_pair(p + q, f(q), f(q + L));
  } else {
    for (size_t q = 0; q < kLine<S>; q += L) store(p + q, f(q));
  }
}
// The same with non-temporal stores; p is the start of a cache line.
template <class S, class F>
XENTROPY_INLINE void stream_line(S* p, const F& f) {
  constexpr size_t L = kLanes<Arithmetic<S>>;
  if constexpr (sizeof(S) == 2) {
    for (size_t q = 0; q < kLine<S>; q += 2 * L) stream_pair(p + q, f(q), f(q + L));
  } else {
    for (size_t q = 0; q < kLine<S>; q += L) stream(p + q, f(q));
  }
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
