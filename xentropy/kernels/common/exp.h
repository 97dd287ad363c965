// exp(x) * 2^-k for a vector, where the integer k is the exponent offset of a row.
//
// With n = round(x / ln 2) and r = x - n ln 2, |r| <= ln(2)/2:
//
//     exp(x) * 2^-k = 2^(n - k) * exp(r),    exp(r) = 1 + r + r^2 q(r)
//
// ln 2 is split into a head with trailing zero bits, so that n * head is exact, and a rest. q:
// float32 degree 4, minimax; float64 degree 9, interpolated at Chebyshev nodes (relative error of
// the polynomial 1.6e-17). Largest error over all float32 arguments and every k: float32 0.92 ulp,
// float64 0.99 (at every 97th of them); without fma 0.99 and 1.08. tests/kernels/test_elementary.py
// checks these bounds.
//
// The offset k keeps the exps of a row in the middle of the exponent range: none that matters is
// subnormal, and their sum does not overflow. A power of two changes no mantissa bit, hence neither
// the loss nor the gradient depends on k.
//
// All tiers with fma compute the same bits, except below 2^-126 (float32), where some give 0 and
// some subnormal numbers. Where those could change a result, the exps of a row below kMinExactExp
// are set to 0.
#pragma once
#include <math.h>

#include "simd/vector16.h"

namespace xentropy {
namespace XENTROPY_TIER {

template <class T>
struct Exp;
template <>
struct Exp<float> {
  static constexpr float kLog2E = 0x1.715476p+0f;
  static constexpr float kLn2Head = 0x1.62e4p-1f, kLn2Rest = 0x1.7f7d1cp-20f;
  static constexpr float kPolynomial[] = {0x1.6850e4p-10f, 0x1.123bccp-7f, 0x1.555b98p-5f,
                                          0x1.55548ep-3f, 0x1.fffff8p-2f};
  static constexpr float kFlush = 160;  // scalef gives 0 at and below 2^-160
  // The largest |k| for which r has full precision. Without fma the 15 bits of the head leave 9 for
  // n. With fma the limit is that x itself (and kRoundToInteger + k) must be exact.
  static constexpr double kMaxOffset = kHasFma ? 1 << 20 : 360;
  static constexpr int kTop = 50;  // k puts the largest probed exp of a row near 2^50
  static constexpr double kFromTop = 0x1p-50;
  static constexpr double kMinTotal = 0x1p49, kMaxTotal = 0x1p100;
  static constexpr double kMinFullExp = 0x1p-100;   // an exp above it has full precision
  static constexpr float kMinExactExp = 0x1p-125f;  // exps below it differ between tiers;
  static constexpr double kMinExactTail = 0x1p-48;  // they can change sums below this,
  static constexpr double kMaxFactor = 0x1p-25;     // and gradients by factors above this
};
template <>
struct Exp<double> {
  static constexpr double kLog2E = 0x1.71547652b82fep+0;
  static constexpr double kLn2Head = 0x1.62e42feep-1, kLn2Rest = 0x1.a39ef35793c76p-33;
  static constexpr double kPolynomial[] = {
      0x1.af38b4925be09p-26, 0x1.28918e390a71ep-22, 0x1.71de0da9d06acp-19, 0x1.a019b905bafb1p-16,
      0x1.a01a01a7c54aep-13, 0x1.6c16c1788dc33p-10, 0x1.11111111109b2p-7,  0x1.5555555553d5ep-5,
      0x1.5555555555556p-3,  0x1.0000000000001p-1};
  static constexpr double kFlush = 1100;
  static constexpr double kMaxOffset = kHasFma ? 1 << 30 : 1 << 19;
  static constexpr int kTop = 400;
  static constexpr double kFromTop = 0x1p-400;
  static constexpr double kMinTotal = 0x1p399, kMaxTotal = 0x1p900;
  static constexpr double kMinFullExp = 0x1p-960;
  static constexpr double kMinExactExp = 0x1p-1021, kMinExactTail = 0x1p-860, kMaxFactor = 0x1p-60;
};

constexpr double kLn2 = 0x1.62e42fefa39efp-1;

// The functions on arrays take each step for all of the n vectors: a processor's scheduler holds
// the instructions of few vectors, and so finds more of them that are independent.

// exp(r) for |r| <= ln(2)/2. Without fma it is more exact to add 1 last, to a small sum.
template <class T, size_t n>
XENTROPY_INLINE void exps_reduced(const Vec<T> (&r)[n], Vec<T> (&p)[n]) {
  const Vec<T> one = splat(T(1));
  for (size_t q = 0; q < n; ++q) p[q] = splat(Exp<T>::kPolynomial[0]);
  for (size_t i = 1; i < sizeof(Exp<T>::kPolynomial) / sizeof(T); ++i) {
    for (size_t q = 0; q < n; ++q) p[q] = fma(p[q], r[q], splat(Exp<T>::kPolynomial[i]));
  }
  if (kHasFma) {
    for (size_t q = 0; q < n; ++q) p[q] = fma(p[q], r[q], one);
    for (size_t q = 0; q < n; ++q) p[q] = fma(p[q], r[q], one);
  } else {
    for (size_t q = 0; q < n; ++q) p[q] = one + (r[q] * r[q] * p[q] + r[q]);
  }
}

// n vectors exp(x + rest) * 2^-k, step by step for all of them: their chains of operations overlap,
// also where there is much to do between the exps. The argument anchor is kRoundToInteger - k.
// `clamped`: x was clamped, so that the exponent is in range; otherwise it is clamped from below
// here. kRest: add `rest`, a correction below the precision of x.
template <class T, bool kRest, size_t n>
XENTROPY_INLINE void exps_from(const Vec<T> (&x)[n], const Vec<T> (&rest)[n], Vec<T> anchor,
                               bool clamped, Vec<T> (&e)[n]) {
  Vec<T> t[n], whole[n], r[n];
  for (size_t q = 0; q < n; ++q) t[q] = fma(x[q], splat(Exp<T>::kLog2E), anchor);
  for (size_t q = 0; q < n; ++q) whole[q] = t[q] - anchor;
  for (size_t q = 0; q < n; ++q) r[q] = fma(whole[q], splat(-Exp<T>::kLn2Head), x[q]);
  for (size_t q = 0; q < n; ++q) r[q] = fma(whole[q], splat(-Exp<T>::kLn2Rest), r[q]);
  for (size_t q = 0; kRest && q < n; ++q) r[q] += rest[q];
  exps_reduced<T>(r, e);
  for (size_t q = 0; q < n; ++q) {
    e[q] = ldexp(e[q], kHasScalef || clamped ? t[q] : max(splat(Exponent<T>::kMagic), t[q]));
  }
}

// One vector.
template <class T, bool kRest>
XENTROPY_INLINE Vec<T> exp_from(Vec<T> x, Vec<T> rest, Vec<T> anchor, bool clamped) {
  const Vec<T> all_x[] = {x}, all_rest[] = {rest};
  Vec<T> e[1];
  exps_from<T, kRest>(all_x, all_rest, anchor, clamped, e);
  return e[0];
}

// The rounding error of product = a * b: by fma, or by Dekker's splitting.
template <class T>
XENTROPY_INLINE Vec<T> product_error(Vec<T> a, Vec<T> b, Vec<T> product) {
  if (kHasFma) return fma(a, b, -product);
  constexpr T kSplit = sizeof(T) == 4 ? T(4097) : T(134217729);
  const Vec<T> big_a = a * kSplit, big_b = b * kSplit;
  const Vec<T> a1 = big_a - (big_a - a), b1 = big_b - (big_b - b);
  const Vec<T> a2 = a - a1, b2 = b - b1;
  return ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2;
}

// a * b - c, rounded once, where a * b is near c. D is double, or a vector of doubles.
XENTROPY_INLINE double product_minus(double a, double b, double c) {
  return __builtin_fma(a, b, -c);
}
XENTROPY_INLINE VD product_minus(VD a, VD b, VD c) {
  if (kHasFma) return fma(a, b, -c);
  const VD product = a * b;
  return (product - c) + product_error<double>(a, b, product);
}

// logit_scale as head + rest: 1/0.7 is not a float32 number, and x / 0.7 must not lose digits.
template <class T>
struct LogitScale {
  Vec<T> head, rest;
  explicit LogitScale(double scale)
      : head(splat(T(scale))), rest(splat(T(scale - double(T(scale))))) {}
};

// scale * x; its rounding error goes to *rest.
template <class T>
XENTROPY_INLINE Vec<T> scaled(Vec<T> x, const LogitScale<T>& scale, Vec<T>* rest) {
  const Vec<T> head = x * scale.head;
  *rest = fma(x, scale.rest, product_error<T>(x, scale.head, head));
  return head;
}

// The exponent offset k in the form that exp takes. Adding `anchor` = kRoundToInteger - k to
// x / ln 2 both rounds to an integer and subtracts k. Logits are clamped to [lowest, highest],
// outside of which the result is 0 or too large (then the total of the row is out of range, and the
// row is computed again from its maximum).
template <class T>
struct OffsetBounds {  // D is double, or a vector of doubles
  template <class D>
  XENTROPY_INLINE_MEMBER static D lowest(D k, double logit_scale) {
    constexpr double kBelow = kHasScalef ? Exp<T>::kFlush : Exponent<T>::kBias;
    return unscaled((k - kBelow) * kLn2, logit_scale);
  }
  template <class D>
  XENTROPY_INLINE_MEMBER static D highest(D k, double logit_scale) {
    return unscaled((k + double(Exponent<T>::kBias)) * kLn2, logit_scale);
  }
  template <class D>
  XENTROPY_INLINE_MEMBER static D unscaled(D x, double logit_scale) {
    if (logit_scale == 1) return x;
    return x / logit_scale;
  }
};
template <class T>
struct ExponentOffset {
  Vec<T> anchor, lowest, highest;

  ExponentOffset(Vec<T> a, Vec<T> l, Vec<T> h) : anchor(a), lowest(l), highest(h) {}
  explicit ExponentOffset(double k, double logit_scale = 1) {
    anchor = splat(T(kRoundToInteger<T> - k));
    lowest = splat(T(OffsetBounds<T>::lowest(k, logit_scale)));
    highest = splat(T(OffsetBounds<T>::highest(k, logit_scale)));
  }

  XENTROPY_INLINE_MEMBER Vec<T> clamp(Vec<T> x) const {
    x = max(lowest, x);
    if (!kHasScalef) x = x > highest ? highest : x;
    return x;
  }
};

// kValue, an integer or a bool, as a type.
template <auto kValue>
struct Constant {
  static constexpr auto value = kValue;
};

// Calls f(Constant<kScaled>()), where kScaled is whether logits are scaled first.
template <class F>
XENTROPY_INLINE void with_scaled(double logit_scale, const F& f) {
  if (logit_scale != 1) return f(Constant<true>());
  f(Constant<false>());
}

// x -> exp(scale * x) * 2^-k. x is clamped before it is scaled, so that the product is finite.
// kScaled: scale is not 1.
template <class T, bool kScaled>
struct DirectExp {
  ExponentOffset<T> k;
  LogitScale<T> scale;

  XENTROPY_INLINE_MEMBER Vec<T> operator()(Vec<T> x) const {
    Vec<T> e[1];
    of_clamped({k.clamp(x)}, e);
    return e[0];
  }

  template <size_t n>
  XENTROPY_INLINE_MEMBER void of_clamped(const Vec<T> (&x)[n], Vec<T> (&e)[n]) const {
    Vec<T> head[n], rest[n] = {};
    for (size_t q = 0; q < n; ++q) head[q] = kScaled ? scaled<T>(x[q], scale, &rest[q]) : x[q];
    exps_from<T, kScaled>(head, rest, k.anchor, true, e);
  }
};

// The same with a k per lane. `anchor` is kRoundToInteger - k, or nan; nan in either argument gives
// nan. x must not be far above the logit whose exp is 2^kTop, because only the lower end is
// clamped. kScaled: scale is not 1.
template <class T, bool kScaled>
struct AnchoredExp {
  LogitScale<T> scale;
  Vec<T> lowest;  // the exps of smaller logits are 0

  explicit AnchoredExp(double logit_scale)
      : scale(logit_scale), lowest(splat(T((sizeof(T) == 4 ? -0x1p21 : -0x1p32) / logit_scale))) {}

  XENTROPY_INLINE_MEMBER Vec<T> clamp(Vec<T> x) const { return max(lowest, x); }
  template <size_t n>
  XENTROPY_INLINE_MEMBER void of_clamped(const Vec<T> (&x)[n], Vec<T> anchor,
                                         Vec<T> (&e)[n]) const {
    Vec<T> rest[n] = {}, product[n];
    for (size_t q = 0; q < n; ++q) product[q] = kScaled ? scaled<T>(x[q], scale, &rest[q]) : x[q];
    exps_from<T, kScaled>(product, rest, anchor, false, e);
  }
  XENTROPY_INLINE_MEMBER Vec<T> operator()(Vec<T> x, Vec<T> anchor) const {
    const Vec<T> clamped[] = {clamp(x)};
    Vec<T> e[1];
    of_clamped(clamped, anchor, e);
    return e[0];
  }
};

// Maps the maxima of rows to kRoundToInteger - k, where k puts the largest exp of a row near
// 2^kTop; to nan where the maximum is not finite or |k| is too large for full precision.
template <class T>
struct Anchors {
  Vec<T> factor;
  explicit Anchors(double scale) : factor(splat(T(scale * Exp<T>::kLog2E))) {}

  XENTROPY_INLINE_MEMBER Vec<T> operator()(Vec<T> peak) const {
    const Vec<T> magic = splat(Exponent<T>::kMagic), most = splat(T(Exp<T>::kMaxOffset));
    const Vec<T> n = (peak * factor + magic) - magic;
    return ((n <= most) & (n >= -most)) ? splat(T(kRoundToInteger<T> + Exp<T>::kTop)) - n
                                        : splat(T(NAN));
  }
};

// x -> exp(scale * (x - peak)) * 2^-k for any finite peak. The difference is kept as head + rest
// (two-sum), so that no digit is lost even at |x| = 1e30. k is the offset of scaled differences.
template <class T>
struct PeakExp {
  ExponentOffset<T> k;
  LogitScale<T> scale;
  Vec<T> peak;

  XENTROPY_INLINE_MEMBER Vec<T> operator()(Vec<T> x) const {
    const Vec<T> d = x - peak;
    const Vec<T> moved = d - x;
    const Vec<T> lost = (x - (d - moved)) + (-peak - moved);
    const Vec<T> head = d * scale.head;
    const Vec<T> of_scale = fma(d, scale.rest, product_error<T>(d, scale.head, head));
    const Vec<T> rest = fma(lost, scale.head, of_scale);
    return exp_from<T, true>(k.clamp(head), head > k.lowest ? rest : Vec<T>{}, k.anchor, true);
  }
};

}  // namespace XENTROPY_TIER
}  // namespace xentropy
