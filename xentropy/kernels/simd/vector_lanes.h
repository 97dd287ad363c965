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
