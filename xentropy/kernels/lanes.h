// Words of rows that lie side by side: halves of vectors, float32 lanes in float64 and back,
// and the tree that turns one vector a row into one lane a row. No intrinsics: constant
// shuffles are known to both compilers.
#pragma once
#include "vector_lanes.h"

namespace xentropy {
namespace XENTROPY_TIER {

typedef float UnalignedHalfVF __attribute__((vector_size(kVectorBytes / 2), aligned(4), may_alias));

struct Halves {
  HalfVF low, high;
};
XENTROPY_INLINE Halves halves(VF v) {
  Halves h;
  __builtin_memcpy(&h, &v, sizeof h);
  return h;
}

XENTROPY_INLINE HalfVF load_half(const float* p) {
  return *reinterpret_cast<const UnalignedHalfVF*>(p);
}

// kLanes<double> elements as float64, and back: rounded, if T is float.
XENTROPY_INLINE VD load_wide(const float* p) { return widen(load_half(p)); }
XENTROPY_INLINE VD load_wide(const double* p) { return load(p); }
XENTROPY_INLINE void store_narrow(float* p, VD v) {
  *reinterpret_cast<UnalignedHalfVF*>(p) = narrow(v);
}
XENTROPY_INLINE void store_narrow(double* p, VD v) { store(p, v); }

XENTROPY_INLINE VD magnitude(VD v) { return (VD)((IntVec<double>)v & INT64_MAX); }

// v rounded to T.
template <class T>
XENTROPY_INLINE VD rounded(VD v) {
  T lanes[kLanes<double>];
  store_narrow(lanes, v);
  return load_wide(lanes);
}

// The first n lanes of whole vectors, the others replaced; or 0, of halves.
template <class T>
struct FirstLanes {
  IntVec<T> mask, rest;
  FirstLanes(size_t n, T fill) {
    for (size_t i = 0; i < kLanes<T>; ++i) mask[i] = i < n ? -1 : 0;
    rest = (IntVec<T>)splat(fill) & ~mask;
  }
  XENTROPY_INLINE_MEMBER HalfVF low(HalfVF v) const { return first(v, 0); }
  XENTROPY_INLINE_MEMBER HalfVF high(HalfVF v) const { return first(v, 1); }
  XENTROPY_INLINE_MEMBER Vec<T> operator()(Vec<T> v) const {
    return (Vec<T>)(((IntVec<T>)v & mask) | rest);
  }

 private:
  XENTROPY_INLINE_MEMBER HalfVF first(HalfVF v, int half) const {
    typedef int32_t I __attribute__((vector_size(kVectorBytes / 2)));
    I masks[2];
    __builtin_memcpy(masks, &mask, sizeof masks);
    return (HalfVF)((I)v & masks[half]);
  }
};

#if defined(__clang__)
#define XENTROPY_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define XENTROPY_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, I{__VA_ARGS__})
#endif

// One step of the tree for vectors of kCount 64-bit lanes: evens(a, b) and odds(a, b) hold
// the two operands of every sum that is to be taken, those of a before those of b.
template <int kStep, size_t kCount>
struct TreeStep;
template <>
struct TreeStep<0, 2> {
  template <class V, class I = IntVec<double>>
  static XENTROPY_INLINE_MEMBER V evens(V a, V b) {
    return XENTROPY_SHUFFLE(a, b, 0, 2);
  }
  template <class V, class I = IntVec<double>>
  static XENTROPY_INLINE_MEMBER V odds(V a, V b) {
    return XENTROPY_SHUFFLE(a, b, 1, 3);
  }
};
template <>
struct TreeStep<0, 4> {
  template <class V, class I = IntVec<double>>
  static XENTROPY_INLINE_MEMBER V evens(V a, V b) {
    return XENTROPY_SHUFFLE(a, b, 0, 4, 2, 6);
  }
  template <class V, class I = IntVec<double>>
  static XENTROPY_INLINE_MEMBER V odds(V a, V b) {
    return XENTROPY_SHUFFLE(a, b, 1, 5, 3, 7);
  }
};
template <>
struct TreeStep<1, 4> {
  template <class V, class I = IntVec<double>>
  static XENTROPY_INLINE_MEMBER V evens(V a, V b) {
    return XENTROPY_SHUFFLE(a, b, 0, 1, 4, 5);
  }
  template <class V, class I = IntVec<double>>
  static XENTROPY_INLINE_MEMBER V odds(V a, V b) {
    return XENTROPY_SHUFFLE(a, b, 2, 3, 6, 7);
  }
};
template <>
struct TreeStep<0, 8> {
  template <class V, class I = IntVec<double>>
  static XENTROPY_INLINE_MEMBER V evens(V a, V b) {
    return XENTROPY_SHUFFLE(a, b, 0, 8, 2, 10, 4, 12, 6, 14);
  }
  template <class V, class I = IntVec<double>>
  static XENTROPY_INLINE_MEMBER V odds(V a, V b) {
    return XENTROPY_SHUFFLE(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
  }
};
template <int kStep>
struct TreeStep<kStep, 8> {  // 1 and 2: whole pairs of lanes
  template <class V, class I = IntVec<double>>
  static XENTROPY_INLINE_MEMBER V evens(V a, V b) {
    return XENTROPY_SHUFFLE(a, b, 0, 1, 4, 5, 8, 9, 12, 13);
  }
  template <class V, class I = IntVec<double>>
  static XENTROPY_INLINE_MEMBER V odds(V a, V b) {
    return XENTROPY_SHUFFLE(a, b, 2, 3, 6, 7, 10, 11, 14, 15);
  }
};

// Lane i of the result: op over all 64-bit lanes of v[i], in pairs. `Node` is a vector, or
// several that go the same way: node(even and odd operands of a and b) makes the next one.
template <int kStep = 0, class Node, size_t kCount, class Op>
XENTROPY_INLINE Node tree(const Node (&v)[kCount], const Op& op) {
  if constexpr (kCount == 1) {
    return v[0];
  } else {
    Node next[kCount / 2];
    for (size_t i = 0; i < kCount / 2; ++i) {
      next[i] = op(TreeStep<kStep, kLanes<double>>(), v[2 * i], v[2 * i + 1]);
    }
    return tree<kStep + 1>(next, op);
  }
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
