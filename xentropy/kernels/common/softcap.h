// The softcap: x -> cap * tanh(x / cap), and its slope 1 - tanh(x / cap)^2.
//
// Cost (float32): a division, 14 multiplications and 4 additions a vector, 7 more for the slope; in
// groups of vectors in which all |x| are below 0.33 cap 7 multiplications, 2 more for the slope.
// With v = -|x|, r = 2 v / cap - n ln 2 in [-0.98 ln 2, 0.02 ln 2], m = 2^n and th = tanh(r / 2):
//
//     tanh(v / cap) = ((m - 1) + (m + 1) th) / ((m + 1) + (m - 1) th) = numerator / d
//     1 - tanh^2 = 4 m (1 - th^2) / d^2
//
// Nothing cancels, because th is at most 0.007: the slope keeps its digits where the tanh rounds
// to 1. th = b P(b^2) with b = r / 2 = a / cap, where a = v - n cap ln(2) / 2; P has degree 4
// (float32) or 8 in b^2, and is written in f = r / ln 2. The numerator is computed times cap, from
// a: where n is 0 the result is a P(b^2), and x itself where P rounds to 1. Largest errors over a
// thousandth of all float32 numbers (float64): 3.4 ulp (2.6); of slopes 5.4 ulp (4.0). Slopes below
// 2^-124 (2^-1020) are 0.
#pragma once
#include "common/exp.h"
#include "tier.h"

namespace xentropy {
namespace XENTROPY_TIER {

template <class T>
struct Tanh;
template <>
struct Tanh<float> {
  // (tanh(b) / b - 1) / f^2, interpolated at Chebyshev nodes; error of P: 2^-28.2
  static constexpr float kPolynomial[] = {0x1.02a022p-18f, -0x1.84d65cp-14f, 0x1.f82aaap-10f,
                                          -0x1.47fd22p-5f};
  static constexpr double kNear = 0.98;  // up to this |2 v / (cap ln 2)| n is 0; below 1
  static constexpr int32_t kSign = INT32_MIN;
  static constexpr double kSaturated = 9.2;              // from here on tanh rounds to 1
  static constexpr uint64_t kHead = ~uint64_t(0) << 37;  // without fma: 16 bits times n are exact
};
template <>
struct Tanh<double> {
  static constexpr double kPolynomial[] = {
      0x1.6b3b7ba956f07p-36,  -0x1.1bde9086c5cabp-31, 0x1.7257709ee17afp-27,
      -0x1.dbd8cbd61ff79p-23, 0x1.317ac0ec7899dp-18,  -0x1.8841e01833e27p-14,
      0x1.f84457f8e8f26p-10,  -0x1.47fd3ffac833bp-5};  // 2^-56.3
  static constexpr double kNear = 0.98;
  static constexpr int64_t kSign = INT64_MIN;
  static constexpr double kSaturated = 19.1;
  static constexpr uint64_t kHead = ~uint64_t(0) << 11;
};

// The constants of a cap. n >= -bias, so that m is a number, or 0.
template <class T>
struct Capped {
  typedef IntVec<T> I;
  Vec<T> cap, inverse, to_n, lowest, saturated, near_limit, head, rest, slope_rest;

  explicit Capped(const Softcap& s)
      : cap(splat(T(s.cap))),
        inverse(splat(T(s.inverse))),
        to_n(splat(T(2 * kLog2E * s.inverse))),
        lowest(splat(T(-(Exponent<T>::kBias + Tanh<T>::kNear - 0.5) * kHalfLn2 * s.cap))),
        saturated(splat(T(-Tanh<T>::kSaturated * s.cap))),
        near_limit(splat(T(Tanh<T>::kNear * (1 - 0x1p-20) * kHalfLn2 * s.cap))) {
    const double unit = kHalfLn2 * s.cap, of_n = head_of(unit);
    double lost = unit - of_n;
    if (sizeof(T) == 8) lost += __builtin_fma(kHalfLn2, s.cap, -unit) + kHalfLn2Rest * s.cap;
    head = splat(T(-of_n));
    rest = splat(T(-lost));
    slope_rest = splat(T(-2 * lost * s.inverse));
  }

  // Whether n may not be 0 in some lane of `most`: the largest bits of |x|.
  XENTROPY_INLINE_MEMBER bool any_far(I most) const { return any(most > (I)near_limit); }

  // As operator() below, bit for bit, where any_far is false: n is 0 and d is 2.
  XENTROPY_INLINE_MEMBER Vec<T> near(Vec<T> x, Vec<T>* slope) const {
    const Vec<T> th_cap = x * ratio(x * to_n), th = th_cap * inverse;
    if (slope) *slope = fma(-th, th, splat(T(1)));
    return th_cap;
  }

  // The capped x; its slope goes to *slope unless that is null. nan gives nan.
  XENTROPY_INLINE_MEMBER Vec<T> operator()(Vec<T> x, Vec<T>* slope) const {
    const Vec<T> one = splat(T(1)), magic = splat(Exponent<T>::kMagic + Exponent<T>::kBias);
    const I sign = I{} + Tanh<T>::kSign;
    const Vec<T> v = max(lowest, (Vec<T>)((I)x | sign));
    const Vec<T> t = fma(v, to_n, splat(T(Tanh<T>::kNear - 0.5))) + magic, n = t - magic;
    const Vec<T> m = (Vec<T>)((I)t << Exponent<T>::kMantissaBits);
    Vec<T> a = fma(n, head, v);
    if (!kHasFma) a = fma(n, rest, a);
    const Vec<T> th_cap = a * ratio(a * to_n), th = th_cap * inverse;
    const Vec<T> above = m + one, below = m - one;
    const Vec<T> h = one / fma(th, below, above);
    const Vec<T> capped = fma(th_cap, above, fma(m, cap, -cap)) * h;
    if (slope) {
      // a lacks n * rest, which matters to the slope alone, and where the tanh is almost 1
      Vec<T> steep = fma(-th, th, one);
      if (kHasFma) steep = fma(n * slope_rest, steep, steep);
      *slope = steep * (m * (h + h)) * (h + h);
    }
    const Vec<T> size = v < saturated ? -cap : max(-cap, capped);
    return (Vec<T>)(((I)size & ~sign) | ((I)x & sign));
  }

 private:
  // tanh(b) / b where b = f ln(2) / 2.
  static XENTROPY_INLINE_MEMBER Vec<T> ratio(Vec<T> f) {
    const Vec<T> square = f * f;
    Vec<T> p = splat(Tanh<T>::kPolynomial[0]);
    for (size_t i = 1; i < sizeof(Tanh<T>::kPolynomial) / sizeof(T); ++i) {
      p = fma(p, square, splat(Tanh<T>::kPolynomial[i]));
    }
    return fma(p, square, splat(T(1)));
  }

  static constexpr double kLog2E = 0x1.71547652b82fep+0, kHalfLn2 = kLn2 / 2;
  static constexpr double kHalfLn2Rest = 0x1.abc9e3b39803fp-57;

  static double head_of(double unit) {
    if (kHasFma) return double(T(unit));
    uint64_t bits;
    __builtin_memcpy(&bits, &unit, 8);
    bits &= Tanh<T>::kHead;
    __builtin_memcpy(&unit, &bits, 8);
    return unit;
  }
};

// kSlope: also the slopes, to `slope`.
template <class S, bool kSlope>
void cap_elements(const Softcap& s, const S* x, size_t n, Arithmetic<S>* to, Arithmetic<S>* slope) {
  typedef Arithmetic<S> T;
  constexpr size_t L = kLanes<T>, kGroup = 4 * L;
  const Capped<T> capped(s);
  const auto near = [&](Vec<T> v, Vec<T>* p) XENTROPY_INLINE_LAMBDA { return capped.near(v, p); };
  Vec<T> d;
  Vec<T>* const at = kSlope ? &d : nullptr;
  const auto cap_at = [&](size_t i, const auto& f) XENTROPY_INLINE_LAMBDA {
    store(to + i, f(load(x + i), at));
    if (kSlope) store(slope + i, d);
  };
  size_t i = 0;
  for (; i + kGroup <= n; i += kGroup) {
    IntVec<T> most = {};
    for (size_t k = i; k < i + kGroup; k += L) {
      if (k % kLine<S> == 0) prefetch_l2(x + k + (8 << 10) / sizeof(S));
      const IntVec<T> size = (IntVec<T>)load(x + k) & ~(IntVec<T>{} + Tanh<T>::kSign);
      most = size > most ? size : most;
    }
    if (capped.any_far(most)) {
      for (size_t k = i; k < i + kGroup; k += L) cap_at(k, capped);
    } else {
      for (size_t k = i; k < i + kGroup; k += L) cap_at(k, near);
    }
  }
  for (; i + L <= n; i += L) cap_at(i, capped);
  if (i == n) return;
  store_first(to + i, capped(load_first(x + i, n - i, Vec<T>{}), at), n - i);
  if (kSlope) store_first(slope + i, d, n - i);
}

// The n capped elements, and their slopes unless `slope` is null. `to` may be `x`.
template <class S>
void cap(const Softcap& s, const S* x, size_t n, Arithmetic<S>* to, Arithmetic<S>* slope) {
  if (slope) return cap_elements<S, true>(s, x, n, to, slope);
  cap_elements<S, false>(s, x, n, to, nullptr);
}

// to[i] = gradient[i] * slope[i] for i < n; `to` may be `gradient`. `streamed`: whole cache lines
// are stored non-temporally.
template <class S>
void times_slope(const Arithmetic<S>* gradient, const Arithmetic<S>* slope, size_t n, S* to,
                 bool streamed) {
  typedef Arithmetic<S> T;
  constexpr size_t L = kLanes<T>;
  const auto product = [&](size_t i)
                           XENTROPY_INLINE_LAMBDA { return load(gradient + i) * load(slope + i); };
  const auto some = [&](size_t i, size_t lanes) XENTROPY_INLINE_LAMBDA {
    const Vec<T> none = {};
    store_first(to + i, load_first(gradient + i, lanes, none) * load_first(slope + i, lanes, none),
                lanes);
  };
  const size_t past = reinterpret_cast<uintptr_t>(to) % kLineBytes / sizeof(S);
  size_t head = streamed && past ? kLine<S> - past : 0, i = 0;
  if (head > n) head = n;
  for (; i < head; i += L) some(i, head - i < L ? head - i : L);
  for (i = head; i + kLine<S> <= n; i += kLine<S>) {
    const auto line = [&](size_t q) XENTROPY_INLINE_LAMBDA { return product(i + q); };
    if (streamed) {
      stream_line(to + i, line);
    } else {
      store_line(to + i, line);
    }
  }
  for (; i < n; i += L) some(i, n - i < L ? n - i : L);
  if (streamed) stream_fence();
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
