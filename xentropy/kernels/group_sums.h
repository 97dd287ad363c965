// What is reduced over the classes of a row, for kLanes<double> rows at a time: each row is
// folded into one vector, the vectors into one lane a row (tree in lanes.h).
//
// Cost: for rows of up to a vector one load and about two shuffles a row.
//
// The order of every addition depends on the number of classes alone.
#pragma once
#include "lanes.h"
#include "sums.h"

namespace xentropy {
namespace XENTROPY_TIER {

// How a row divides into vectors. What is read may run over its end, by less than a vector.
template <class T>
struct RowShape {
  size_t classes;
  size_t full;  // whole vectors before the last, which has 1 to kLanes<T> elements
  FirstLanes<T> last_or_zero, last_or_least;
  bool half;  // the last fits into half a vector

  explicit RowShape(size_t c)
      : classes(c),
        full((c - 1) / kLanes<T>),
        last_or_zero(c - full * kLanes<T>, T(0)),
        last_or_least(c - full * kLanes<T>, T(-INFINITY)),
        half(2 * (c - full * kLanes<T>) <= kLanes<T>) {}
};

// Sums of rows: value + lost where T is float64 itself; lost is 0 otherwise.
struct LaneSums {
  VD value, lost;
};

XENTROPY_INLINE LaneSums exact_sums(VD a, VD b) {  // two-sum
  const VD sum = a + b, moved = sum - a;
  return {sum, (a - (sum - moved)) + (b - moved)};
}

// A row of float32 in float64 lanes. An exp meets one rounding to float32 at most; with
// kExact none.
template <bool kExact, int kFull>
XENTROPY_INLINE VD fold_row(const float* p, const RowShape<float>& shape) {
  constexpr size_t L = kLanes<float>;
  const size_t full = kFull >= 0 ? size_t(kFull) : shape.full;
  if (full == 0) {
    if (shape.half) return widen(shape.last_or_zero.low(load_half(p)));
    const HalfVF low = load_half(p), high = shape.last_or_zero.high(load_half(p + L / 2));
    return kExact ? widen(low) + widen(high) : widen(low + high);
  }
  const VF last = shape.last_or_zero(load(p + full * L));
  VD low = {}, high = {};
  const auto add = [&](VF v) XENTROPY_INLINE_LAMBDA {
    const Halves h = halves(v);
    low += widen(h.low);
    high += widen(h.high);
  };
  size_t i = 0;
  for (; i + 2 <= full; i += 2) {
    const VF a = load(p + i * L), b = load(p + (i + 1) * L);
    if (kExact) add(a);
    add(kExact ? b : a + b);
  }
  if (i < full && kExact) add(load(p + i * L));
  add(i < full && !kExact ? last + load(p + i * L) : last);
  return low + high;
}

template <bool kExact, int kFull>
XENTROPY_INLINE LaneSums sum_lanes_of_rows(const float* p, const RowShape<float>& shape) {
  VD v[kLanes<double>];
  for (size_t i = 0; i < kLanes<double>; ++i) {
    v[i] = fold_row<kExact, kFull>(p + i * shape.classes, shape);
  }
  return {tree(v, [](auto step, VD a, VD b)
                      XENTROPY_INLINE_LAMBDA { return step.evens(a, b) + step.odds(a, b); }),
          VD{}};
}

template <bool kExact, int kFull>
XENTROPY_INLINE LaneSums sum_lanes_of_rows(const double* p, const RowShape<double>& shape) {
  LaneSums v[kLanes<double>];
  const size_t full = kFull >= 0 ? size_t(kFull) : shape.full;
  for (size_t i = 0; i < kLanes<double>; ++i) {
    const double* row = p + i * shape.classes;
    v[i] = {shape.last_or_zero(load(row + full * kLanes<double>)), VD{}};
    for (size_t j = 0; j < full; ++j) {
      const LaneSums next = exact_sums(v[i].value, load(row + j * kLanes<double>));
      v[i] = {next.value, v[i].lost + next.lost};
    }
  }
  const LaneSums s =
      tree(v, [](auto step, const LaneSums& a, const LaneSums& b) XENTROPY_INLINE_LAMBDA {
        const VD lost = step.evens(a.lost, b.lost) + step.odds(a.lost, b.lost);
        const LaneSums next = exact_sums(step.evens(a.value, b.value), step.odds(a.value, b.value));
        return LaneSums{next.value, lost + next.lost};
      });
  const VD lost = s.lost == s.lost ? s.lost : VD{};  // an infinite sum has lost nan
  const LaneSums whole = exact_sums(s.value, lost);
  return {whole.value, whole.value - whole.value == 0 ? whole.lost : VD{}};
}

template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

// f(full) with the number of full vectors as a constant where it is small, else -1.
template <class F>
XENTROPY_INLINE void with_full(size_t full, const F& f) {
  switch (full) {
    case 0:
      return f(Constant<0>());
    case 1:
      return f(Constant<1>());
    case 2:
      return f(Constant<2>());
    default:
      return f(Constant<-1>());
  }
}

// Sums of `rows` adjacent rows, a multiple of kLanes<double>, to value and lost (may be null).
template <bool kExact, class T>
void sum_rows(const T* p, size_t rows, const RowShape<T>& row, double* value, double* lost) {
  with_full(row.full, [=](auto full) {
    const RowShape<T> shape = row;  // a copy: no store can change it
    for (size_t q = 0; q < rows; q += kLanes<double>) {
      const LaneSums s = sum_lanes_of_rows<kExact, full.value>(p + q * shape.classes, shape);
      store(value + q, s.value);
      if (sizeof(T) == 8) store(lost + q, s.lost);
    }
  });
}

// The largest element of kLanes<double> rows; float32 lanes hold it twice.
template <int kFull, class T>
XENTROPY_INLINE Vec<T> max_lanes_of_rows(const T* p, const RowShape<T>& shape) {
  const size_t full = kFull >= 0 ? size_t(kFull) : shape.full;
  VD v[kLanes<double>];
  for (size_t i = 0; i < kLanes<double>; ++i) {
    const T* row = p + i * shape.classes;
    Vec<T> m = shape.last_or_least(load(row + full * kLanes<T>));
    for (size_t j = 0; j < full; ++j) m = max(m, load(row + j * kLanes<T>));
    v[i] = (VD)m;
  }
  const VD m = tree(v, [](auto step, VD a, VD b) XENTROPY_INLINE_LAMBDA {
    return (VD)max((Vec<T>)step.evens(a, b), (Vec<T>)step.odds(a, b));
  });
  if (sizeof(T) == 8) return (Vec<T>)m;
  const IntVec<double> bits = (IntVec<double>)m;
  return max((Vec<T>)m, (Vec<T>)((bits >> 32 & 0xffffffff) | bits << 32));
}

// Of the float32 lanes that come in equal pairs one each.
XENTROPY_INLINE void store_rows(float* p, VF pairs) {
  typedef int32_t I __attribute__((vector_size(kVectorBytes / 2)));
  const I bits = __builtin_convertvector((IntVec<double>)pairs, I);
  __builtin_memcpy(p, &bits, sizeof bits);
}
XENTROPY_INLINE void store_rows(double* p, VD v) { store(p, v); }

// From the maxima of rows kShift - k, so that the largest exp of a row is about 2^kTop; nan
// where the maximum is not finite or |k| too large for full precision.
template <class T>
struct Anchors {
  Vec<T> factor;
  explicit Anchors(double scale) : factor(splat(T(scale * Exp<T>::kLog2E))) {}

  XENTROPY_INLINE_MEMBER Vec<T> operator()(Vec<T> peak) const {
    const Vec<T> magic = splat(Exponent<T>::kMagic), most = splat(T(Exp<T>::kMaxShift));
    const Vec<T> n = (peak * factor + magic) - magic;
    return ((n <= most) & (n >= -most)) ? splat(T(kShift<T> + Exp<T>::kTop)) - n : splat(T(NAN));
  }
};

template <class T>
void anchor_rows(const T* x, size_t rows, const RowShape<T>& row, double scale, T* anchor) {
  const Anchors<T> anchors(scale);
  with_full(row.full, [=](auto full) {
    const RowShape<T> shape = row;
    for (size_t q = 0; q < rows; q += kLanes<double>) {
      store_rows(anchor + q, anchors(max_lanes_of_rows<full.value>(x + q * shape.classes, shape)));
    }
  });
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
