// Transposition of as many vectors as a vector has lanes.
#pragma once
#include "simd/trees.h"

namespace xentropy {
namespace XENTROPY_TIER {

// The lanes of a and b in turn, a0 b0 a1 b1 ...: lower() is the first half of them, upper() the
// second. kCount: lanes of a vector.
template <size_t kCount>
struct Interleave;
template <>
struct Interleave<2> {
  template <class V, class I>
  static XENTROPY_INLINE_MEMBER V lower(V a, V b) {
    return XENTROPY_SHUFFLE(a, b, 0, 2);
  }
  template <class V, class I>
  static XENTROPY_INLINE_MEMBER V upper(V a, V b) {
    return XENTROPY_SHUFFLE(a, b, 1, 3);
  }
};
template <>
struct Interleave<4> {
  template <class V, class I>
  static XENTROPY_INLINE_MEMBER V lower(V a, V b) {
    return XENTROPY_SHUFFLE(a, b, 0, 4, 1, 5);
  }
  template <class V, class I>
  static XENTROPY_INLINE_MEMBER V upper(V a, V b) {
    return XENTROPY_SHUFFLE(a, b, 2, 6, 3, 7);
  }
};
template <>
struct Interleave<8> {
  template <class V, class I>
  static XENTROPY_INLINE_MEMBER V lower(V a, V b) {
    return XENTROPY_SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
  }
  template <class V, class I>
  static XENTROPY_INLINE_MEMBER V upper(V a, V b) {
    return XENTROPY_SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
  }
};
template <>
struct Interleave<16> {
  template <class V, class I>
  static XENTROPY_INLINE_MEMBER V lower(V a, V b) {
    return XENTROPY_SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  }
  template <class V, class I>
  static XENTROPY_INLINE_MEMBER V upper(V a, V b) {
    return XENTROPY_SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  }
};

// A step of a transposition doubles the number i * lanes + j of each lane j of vector i, and puts
// the lanes of the upper half of the vectors in between: it rotates the bits of the number.
// one_step(from, to) and two_steps(from, to) read vector i by from(i) and write by to(i, vector).
// In two steps four vectors become four others: few are alive at a time.
template <class T>
struct TransposeStep {
  static constexpr size_t L = kLanes<T>;
  static XENTROPY_INLINE_MEMBER Vec<T> lower(Vec<T> a, Vec<T> b) {
    return Interleave<L>::template lower<Vec<T>, IntVec<T>>(a, b);
  }
  static XENTROPY_INLINE_MEMBER Vec<T> upper(Vec<T> a, Vec<T> b) {
    return Interleave<L>::template upper<Vec<T>, IntVec<T>>(a, b);
  }
};
template <class T, class From, class To>
XENTROPY_INLINE void one_step(const From& from, const To& to) {
  using Step = TransposeStep<T>;
  for (size_t i = 0; i < Step::L / 2; ++i) {
    const Vec<T> a = from(i), b = from(i + Step::L / 2);
    to(2 * i, Step::lower(a, b));
    to(2 * i + 1, Step::upper(a, b));
  }
}
template <class T, class From, class To>
XENTROPY_INLINE void two_steps(const From& from, const To& to) {
  using Step = TransposeStep<T>;
  constexpr size_t kQuarter = Step::L / 4;
  for (size_t i = 0; i < kQuarter; ++i) {
    const Vec<T> a = from(i), b = from(i + 2 * kQuarter);
    const Vec<T> c = from(i + kQuarter), d = from(i + 3 * kQuarter);
    const Vec<T> ab = Step::lower(a, b), cd = Step::lower(c, d);
    to(4 * i, Step::lower(ab, cd));
    to(4 * i + 1, Step::upper(ab, cd));
    const Vec<T> ab_upper = Step::upper(a, b), cd_upper = Step::upper(c, d);
    to(4 * i + 2, Step::lower(ab_upper, cd_upper));
    to(4 * i + 3, Step::upper(ab_upper, cd_upper));
  }
}

// Lane j of vector from(i) becomes lane i of the vector of to(j, vector): log2(lanes) steps swap i
// and j.
template <class T, class From, class To>
XENTROPY_INLINE void transpose(const From& from, const To& to) {
  constexpr size_t L = kLanes<T>;
  if constexpr (L == 2) {
    one_step<T>(from, to);
  } else if constexpr (L == 4) {
    two_steps<T>(from, to);
  } else {
    Vec<T> v[L];
    const auto put = [&](size_t i, Vec<T> each) XENTROPY_INLINE_LAMBDA { v[i] = each; };
    const auto get = [&](size_t i) XENTROPY_INLINE_LAMBDA { return v[i]; };
    two_steps<T>(from, put);
    if constexpr (L == 8) {
      one_step<T>(get, to);
    } else {
      two_steps<T>(get, to);
    }
  }
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
