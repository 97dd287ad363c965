// Operations that move lanes: conversion between float32 and float64, permutation within a vector,
// reduction to one lane.
#pragma once
#include "simd/vector.h"

namespace xentropy {
namespace XENTROPY_TIER {

// --- conversion of half a vector of float32 to float64 lanes, and back ---

typedef float HalfVF __attribute__((vector_size(kVectorBytes / 2)));

#if defined(__AVX512F__)  // GCC 12 compiles __builtin_convertvector to four instructions
XENTROPY_INLINE VD widen(HalfVF v) { return (VD)_mm512_cvtps_pd((__m256)v); }
XENTROPY_INLINE HalfVF narrow(VD v) { return (HalfVF)_mm512_cvtpd_ps((__m512d)v); }
XENTROPY_INLINE VD widen_lower(VF v) { return widen((HalfVF)_mm512_castps512_ps256((__m512)v)); }
XENTROPY_INLINE VD widen_upper(VF v) {
  return widen((HalfVF)_mm512_extractf64x4_pd(_mm512_castps_pd((__m512)v), 1));
}
#else
XENTROPY_INLINE VD widen(HalfVF v) { return __builtin_convertvector(v, VD); }
XENTROPY_INLINE HalfVF narrow(VD v) { return __builtin_convertvector(v, HalfVF); }
#if defined(__AVX2__)
XENTROPY_INLINE VD widen_lower(VF v) { return widen((HalfVF)_mm256_castps256_ps128((__m256)v)); }
XENTROPY_INLINE VD widen_upper(VF v) { return widen((HalfVF)_mm256_extractf128_ps((__m256)v, 1)); }
#else
XENTROPY_INLINE VD widen_lower(VF v) { return widen(HalfVF{v[0], v[1]}); }
XENTROPY_INLINE VD widen_upper(VF v) { return widen(HalfVF{v[2], v[3]}); }
#endif
#endif

// --- permute(v, index): lane i is lane l of v, where lane i of index is permutation<T>(l) ---

#if defined(__AVX512F__)
template <class T>
constexpr int64_t permutation(int64_t lane) {
  return lane;
}
XENTROPY_INLINE VF permute(VF v, IntVec<float> index) {
  return (VF)_mm512_permutexvar_ps((__m512i)index, (__m512)v);
}
XENTROPY_INLINE VD permute(VD v, IntVec<double> index) {
  return (VD)_mm512_permutexvar_pd((__m512i)index, (__m512d)v);
}
#elif defined(__AVX2__)
template <class T>
constexpr int64_t permutation(int64_t lane) {  // in lanes of 32 bits
  return sizeof(T) == 4 ? lane : 2 * lane | (2 * lane + 1) << 32;
}
template <class V, class I>
XENTROPY_INLINE V permute(V v, I index) {
  return (V)_mm256_permutevar8x32_ps((__m256)v, (__m256i)index);
}
#else
template <class T>
constexpr int64_t permutation(int64_t lane) {  // in bytes
  return sizeof(T) == 4 ? lane * 0x04040404 + 0x03020100
                        : lane * 0x0808080808080808 + 0x0706050403020100;
}
template <class V, class I>
XENTROPY_INLINE V permute(V v, I index) {
#if defined(__SSSE3__)
  return (V)_mm_shuffle_epi8((__m128i)v, (__m128i)index);
#else
  return (V)vqtbl1q_u8((uint8x16_t)v, (uint8x16_t)index);
#endif
}
#endif

// --- load_halves(a, b): the first half of the lanes from a, the second from b ---

#if defined(__AVX512F__)
XENTROPY_INLINE VF load_halves(const float* a, const float* b) {
  const __m512 low = _mm512_castps256_ps512(_mm256_loadu_ps(a));
  return (VF)_mm512_insertf32x8(low, _mm256_loadu_ps(b), 1);
}
#elif defined(__AVX2__)
XENTROPY_INLINE VF load_halves(const float* a, const float* b) {
  return (VF)_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(a)), _mm_loadu_ps(b), 1);
}
#elif defined(__SSE2__)
XENTROPY_INLINE VF load_halves(const float* a, const float* b) {
  const __m128i low = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(a));
  return (VF)_mm_loadh_pi(_mm_castsi128_ps(low), reinterpret_cast<const __m64*>(b));
}
#else
XENTROPY_INLINE VF load_halves(const float* a, const float* b) {
  return (VF)vcombine_f32(vld1_f32(a), vld1_f32(b));
}
#endif
XENTROPY_INLINE VD load_halves(const double* a, const double* b) {
  return (VD)load_halves(reinterpret_cast<const float*>(a), reinterpret_cast<const float*>(b));
}

// --- store_equal(to, a, b): where a == b, as kEqualBits<T> bits a lane; first_equal finds them ---

#if defined(__AVX512F__)
template <class T>
constexpr size_t kEqualBits = 1;
XENTROPY_INLINE void store_equal(unsigned char* to, VF a, VF b) {
  const __mmask16 bits = _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_EQ_OQ);
  __builtin_memcpy(to, &bits, sizeof bits);
}
XENTROPY_INLINE void store_equal(unsigned char* to, VD a, VD b) {
  *to = _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_EQ_OQ);
}
#elif defined(__SSE2__)
template <class T>
constexpr size_t kEqualBits = sizeof(T);
template <class V>
XENTROPY_INLINE void store_equal(unsigned char* to, V a, V b) {
#if defined(__AVX2__)
  const uint32_t bits = uint32_t(_mm256_movemask_epi8((__m256i)(a == b)));
#else
  const uint16_t bits = uint16_t(_mm_movemask_epi8((__m128i)(a == b)));
#endif
  __builtin_memcpy(to, &bits, sizeof bits);
}
#else
template <class T>
constexpr size_t kEqualBits = 4 * sizeof(T);
template <class V>
XENTROPY_INLINE void store_equal(unsigned char* to, V a, V b) {
  vst1_u8(to, vshrn_n_u16((uint16x8_t)(a == b), 4));
}
#endif

// The bits of the lanes from `begin` on, kLanesOfWord<T> at least.
template <class T>
constexpr size_t kLanesOfWord = 56 / kEqualBits<T>;  // a word may begin within a byte
template <class T>
XENTROPY_INLINE uint64_t word_of_bits(const unsigned char* bits, size_t begin) {
  const size_t at = begin * kEqualBits<T>;
  uint64_t word;
  __builtin_memcpy(&word, bits + at / 8, sizeof word);
  return word >> at % 8;
}

// The first of the n lanes from `begin` on whose bits are set; 0 if there is none. Reads less than
// 16 bytes beyond them.
template <class T>
__attribute__((noinline)) size_t first_equal_beyond(const unsigned char* bits, size_t begin,
                                                    size_t n) {
  for (size_t c = kLanesOfWord<T>; c < n; c += kLanesOfWord<T>) {
    const uint64_t word = word_of_bits<T>(bits, begin + c);
    if (word == 0) continue;
    c += size_t(__builtin_ctzll(word)) / kEqualBits<T>;
    return c < n ? c : 0;
  }
  return 0;
}
template <class T>
XENTROPY_INLINE size_t first_equal(const unsigned char* bits, size_t begin, size_t n) {
  const uint64_t word = word_of_bits<T>(bits, begin);
  if (__builtin_expect(word == 0, 0)) return first_equal_beyond<T>(bits, begin, n);
  const size_t c = size_t(__builtin_ctzll(word)) / kEqualBits<T>;
  return __builtin_expect(c < n, 1) ? c : 0;
}

// --- fold_lanes<T>(v, op): all lanes combined by halves: lane i with lane i + n / 2, ... ---

template <class T, size_t n = kLanes<T>, class V, class Op>
XENTROPY_INLINE T fold_lanes(V v, const Op& op) {
  if constexpr (n == 2) {
    return op(v[0], v[1]);
  } else {
    typedef T Half __attribute__((vector_size(n / 2 * sizeof(T))));
    Half half[2];
    __builtin_memcpy(half, &v, sizeof v);
    return fold_lanes<T, n / 2>(op(half[0], half[1]), op);
  }
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
