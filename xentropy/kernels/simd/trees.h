// Operations on several adjacent rows: halves of vectors, float32 lanes as float64 and back, and
// the tree of shuffles that reduces one vector per row to one lane per row. No intrinsics: both
// compilers provide shuffles with constant indices.
#pragma once
#include "simd/vector_lanes.h"

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

// kLanes<double> elements as float64; store_narrow rounds to T.
XENTROPY_INLINE VD load_wide(const float* p) { return widen(load_half(p)); }
XENTROPY_INLINE VD load_wide(const double* p) { return load(p); }
XENTROPY_INLINE void store_narrow(float* p, VD v) {
  *reinterpret_cast<UnalignedHalfVF*>(p) = narrow(v);
}
XENTROPY_INLINE void store_narrow(double* p, VD v) { store(p, v); }

XENTROPY_INLINE double magnitude(double v) { return __builtin_fabs(v); }
XENTROPY_INLINE VD magnitude(VD v) { return (VD)((IntVec<double>)v & INT64_MAX); }

// v rounded to T, as float64.
template <class T>
XENTROPY_INLINE VD rounded(VD v) {
  T lanes[kLanes<double>];
  store_narrow(lanes, v);
  return load_wide(lanes);
}
template <class T>
XENTROPY_INLINE double rounded(double v) {
  return double(T(v));
}

// Keeps the first n lanes of each half of a vector and replaces the rest by `fill`.
template <class T>
struct FirstOfHalves {
  IntVec<T> mask, rest;
  FirstOfHalves(size_t n, T fill) {
    for (size_t i = 0; i < kLanes<T>; ++i) mask[i] = i % (kLanes<T> / 2) < n ? -1 : 0;
    rest = (IntVec<T>)splat(fill) & ~mask;
  }
  XENTROPY_INLINE_MEMBER Vec<T> operator()(Vec<T> v) const {
    return (Vec<T>)(((IntVec<T>)v & mask) | rest);
  }
};

// Keeps the first n lanes of a cache line and sets the rest to 0, in pieces of kLanes<double>
// elements.
template <class T>
struct LastLine {
  typedef decltype(IntVec<T>{}[0] + 0) Int;
  typedef Int Mask __attribute__((vector_size(kLanes<double> * sizeof(T))));
  Mask mask[kLine<T> / kLanes<double>];

  explicit LastLine(size_t n) {
    for (size_t i = 0; i < kLine<T>; ++i) {
      mask[i / kLanes<double>][i % kLanes<double>] = i < n ? -1 : 0;
    }
  }
  template <class Piece>
  XENTROPY_INLINE_MEMBER Piece operator()(Piece v, size_t piece) const {
    return (Piece)((Mask)v & mask[piece]);
  }
};

#if defined(__clang__)
#define XENTROPY_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define XENTROPY_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, I{__VA_ARGS__})
#endif

// Step kStep of the tree, for vectors of kCount 64-bit lanes. Before it the partial sums of a row
// occupy pieces of kCount >> kStep lanes. lower(a, b) and upper(a, b) are the lower and the upper
// halves of these pieces, those of a before those of b: lane i of a row is combined with
// lane i + kCount / 2, then + kCount / 4, ...
template <int kStep, size_t kCount>
struct TreeStep;
template <>
struct TreeStep<0, 2> {
  template <class V, class I = IntVec<double>>
  static XENTROPY_INLINE_MEMBER V lower(V a, V b) {
    return XENTROPY_SHUFFLE(a, b, 0, 2);
  }
  template <class V, class I = IntVec<double>>
  static XENTROPY_INLINE_MEMBER V upper(V a, V b) {
    return XENTROPY_SHUFFLE(a, b, 1, 3);
  }
};
template <>
struct TreeStep<0, 4> {
  template <class V, class I = IntVec<double>>
  static XENTROPY_INLINE_MEMBER V lower(V a, V b) {
    return XENTROPY_SHUFFLE(a, b, 0, 1, 4, 5);
  }
  template <class V, class I = IntVec<double>>
  static XENTROPY_INLINE_MEMBER V upper(V a, V b) {
    return XENTROPY_SHUFFLE(a, b, 2, 3, 6, 7);
  }
};
template <>
struct TreeStep<1, 4> {
  template <class V, class I = IntVec<double>>
  static XENTROPY_INLINE_MEMBER V lower(V a, V b) {
    return XENTROPY_SHUFFLE(a, b, 0, 4, 2, 6);
  }
  template <class V, class I = IntVec<double>>
  static XENTROPY_INLINE_MEMBER V upper(V a, V b) {
    return XENTROPY_SHUFFLE(a, b, 1, 5, 3, 7);
  }
};
template <>
struct TreeStep<0, 8> {
  template <class V, class I = IntVec<double>>
  static XENTROPY_INLINE_MEMBER V lower(V a, V b) {
    return XENTROPY_SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11);
  }
  template <class V, class I = IntVec<double>>
  static XENTROPY_INLINE_MEMBER V upper(V a, V b) {
    return XENTROPY_SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
  }
};
template <>
struct TreeStep<1, 8> {
  template <class V, class I = IntVec<double>>
  static XENTROPY_INLINE_MEMBER V lower(V a, V b) {
    return XENTROPY_SHUFFLE(a, b, 0, 1, 4, 5, 8, 9, 12, 13);
  }
  template <class V, class I = IntVec<double>>
  static XENTROPY_INLINE_MEMBER V upper(V a, V b) {
    return XENTROPY_SHUFFLE(a, b, 2, 3, 6, 7, 10, 11, 14, 15);
  }
};
template <>
struct TreeStep<2, 8> {
  template <class V, class I = IntVec<double>>
  static XENTROPY_INLINE_MEMBER V lower(V a, V b) {
    return XENTROPY_SHUFFLE(a, b, 0, 8, 2, 10, 4, 12, 6, 14);
  }
  template <class V, class I = IntVec<double>>
  static XENTROPY_INLINE_MEMBER V upper(V a, V b) {
    return XENTROPY_SHUFFLE(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
  }
};

// The first step for two rows of float32 that are to be widened: shuffled before, in half the time.
XENTROPY_INLINE VD sum_halves(HalfVF a, HalfVF b) {
  typedef int32_t I __attribute__((vector_size(kVectorBytes / 2)));
  typedef TreeStep<0, kLanes<double>> Step;
  return widen(Step::lower<HalfVF, I>(a, b)) + widen(Step::upper<HalfVF, I>(a, b));
}

// The steps from kStep on, for kCount nodes.
template <int kStep, class Node, size_t kCount, class Op>
XENTROPY_INLINE Node tree_from(const Node (&v)[kCount], const Op& op) {
  if constexpr (kCount == 1) {
    return v[0];
  } else {
    Node next[kCount / 2];
    for (size_t i = 0; i < kCount / 2; ++i) {
      next[i] = op(TreeStep<kStep, kLanes<double>>(), v[2 * i], v[2 * i + 1]);
    }
    return tree_from<kStep + 1>(next, op);
  }
}

// Lane i of the result is the reduction by op of all 64-bit lanes of v[i], in halves. Node is a
// vector, or a struct of vectors that are shuffled alike; op(step, a, b) combines the halves of a
// and b that `step` selects.
template <class Node, size_t kCount, class Op>
XENTROPY_INLINE Node tree(const Node (&v)[kCount], const Op& op) {
  Node evens_first[kCount];  // the last step interleaves the lanes of two vectors
  for (size_t i = 0; i < kCount; ++i) evens_first[i / 2 + i % 2 * (kCount / 2)] = v[i];
  return tree_from<0>(evens_first, op);
}

// The same from the second step on: pair(i, j) has half a vector of row i, then half a vector of j.
template <class Pair, class Op>
XENTROPY_INLINE VD tree_of_pairs(const Pair& pair, const Op& op) {
  constexpr size_t D = kLanes<double>;
  const auto row = [](size_t i) { return i < D / 2 ? 2 * i : 2 * i - D + 1; };
  VD v[D / 2];
  for (size_t i = 0; i < D / 2; ++i) v[i] = pair(row(2 * i), row(2 * i + 1));
  return tree_from<1>(v, op);
}

// Sums of rows, one per lane: the exact sum is value + lost for float64 rows; lost is 0 for
// float32.
struct LaneSums {
  VD value, lost;
};

XENTROPY_INLINE LaneSums exact_sums(VD a, VD b) {  // two-sum
  const VD sum = a + b, moved = sum - a;
  return {sum, (a - (sum - moved)) + (b - moved)};
}
XENTROPY_INLINE LaneSums exact_sums(const LaneSums& a, const LaneSums& b) {
  const LaneSums next = exact_sums(a.value, b.value);
  return {next.value, (a.lost + b.lost) + next.lost};
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
