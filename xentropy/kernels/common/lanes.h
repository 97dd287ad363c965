// Rows a lane: what kernels share in which a vector holds one class of kLanes<T> rows, and sums
// over classes are vertical.
#pragma once
#include "common/sums.h"
#include "simd/trees.h"

namespace xentropy {
namespace XENTROPY_TIER {

// An integer as wide as T, and vectors of them in memory.
template <class T>
using LaneInt = decltype(IntVec<T>{}[0] + 0);
template <class T>
XENTROPY_INLINE IntVec<T> load_integers(const LaneInt<T>* p) {
  IntVec<T> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
XENTROPY_INLINE void store_integers(LaneInt<T>* p, IntVec<T> v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// How many rows a batch has: its logits stay in the L1 cache.
constexpr size_t kBatchBytes = 16 << 10, kBatchRows = 128;
template <class T>
XENTROPY_INLINE size_t batch_rows(size_t classes) {
  constexpr size_t L = kLanes<T>;
  const size_t n = kBatchBytes / sizeof(T) / classes / L * L;
  return n < L ? L : n > kBatchRows ? kBatchRows : n;
}

// The sum of n vectors, at most 4.
template <class V, size_t n>
XENTROPY_INLINE V sum_of_few(const V (&v)[n]) {
  if constexpr (n == 4) {
    return (v[0] + v[1]) + (v[2] + v[3]);
  } else {
    V sum = v[0];
    for (size_t q = 1; q < n; ++q) sum += v[q];
    return sum;
  }
}

// The lanes of half h as float64; float64 has no second half.
XENTROPY_INLINE VD half_of(VF v, size_t h) { return h ? widen_upper(v) : widen_lower(v); }
XENTROPY_INLINE VD half_of(VD v, size_t) { return v; }
XENTROPY_INLINE VD half_of(const LaneTotal<float>& t, size_t h) { return h ? t.upper : t.lower; }
XENTROPY_INLINE VD half_of(const LaneTotal<double>& t, size_t) { return t.lanes + t.lost; }

}  // namespace XENTROPY_TIER
}  // namespace xentropy
