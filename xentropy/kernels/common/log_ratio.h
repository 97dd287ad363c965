// The logarithm of the ratio of two softmaxes, class by class, with no digit lost where it is
// small.
//
// With s and t the scaled logits of two distributions S and T, and m the class of the largest s:
//
//     u_c = (t_c - s_c) - (t_m - s_m),    d_c = log(T_c / S_c) = u_c + d_m
//
// Each difference is kept as head + rest (two-sum), so that both are exact to a few units in the
// last place however large the logits are, and however small u and d.
#pragma once
#include "common/sums.h"
#include "simd/trees.h"

namespace xentropy {
namespace XENTROPY_TIER {

template <class T>
struct LogRatio {
  Vec<T> d, u;
};

// a - b; its rounding error goes to *lost.
template <class T>
XENTROPY_INLINE Vec<T> exact_difference(Vec<T> a, Vec<T> b, Vec<T>* lost) {
  const Vec<T> head = a - b, moved = head - a;
  *lost = (a - (head - moved)) - (b + moved);
  return head;
}

// The same of a product, in float64: of one row, or of a vector of rows.
template <class D>
XENTROPY_INLINE SumOf<D> exact_product(D a, D b) {
  const D product = a * b;
  return {product, product_minus(a, b, product)};
}

// d_m. at: t_m; top: the largest t; above: log T - log S of the classes with the largest logits of
// each.
template <class D>
XENTROPY_INLINE SumOf<D> log_ratio_of(const SumOf<D>& at, const SumOf<D>& top, D above) {
  const SumOf<D> below = exact_sum(at.value, -top.value), d = exact_sum(below.value, above);
  return {d.value, d.lost + (below.lost + (at.lost - top.lost))};
}

// A scaled logit near the end of any row: probability 0, but with a finite distance to all others.
// So far below the largest one, `peak`, that no exp of a smaller distance is 0.
template <class T>
XENTROPY_INLINE T lowest_below(double peak) {
  const double far = 2 * __builtin_fabs(peak), low = peak - (far > 0x1p13 ? far : 0x1p13);
  return T(low > -0x1p126 ? low : -0x1p126);
}

// Scales the logits of one distribution. -inf becomes `lowest`.
template <class T>
struct ScaledLogits {
  LogitScale<T> scale;
  Vec<T> lowest;
  bool exact;  // the scale is 1: nothing is rounded

  ScaledLogits(double factor, T peak)
      : scale(factor), lowest(splat(lowest_below<T>(double(peak) * factor))), exact(factor == 1) {}

  XENTROPY_INLINE_MEMBER Vec<T> operator()(Vec<T> x, Vec<T>* rest) const {
    Vec<T> head = x;
    *rest = Vec<T>{};
    if (!exact) head = scaled<T>(x, scale, rest);
    const auto excluded = head == splat(T(-INFINITY));
    *rest = excluded ? Vec<T>{} : *rest;
    return excluded ? lowest : head;
  }
};

template <class T>
XENTROPY_INLINE Vec<T> finite_or_0(Vec<T> v) {
  return v - v == 0 ? v : Vec<T>{};
}

// Maps logits to u and d.
template <class T>
struct LogRatios {
  ScaledLogits<T> own, other;
  Vec<T> at_head, at_rest;  // t_m - s_m
  Vec<T> d_head, d_rest;    // d_m

  // x and y: the logits of class m. t_peak: the largest logit of T. above: as in log_ratio_of.
  LogRatios(double s_scale, double t_scale, T x, T y, T t_peak, double above)
      : own(s_scale, x), other(t_scale, t_peak) {
    at_head = difference(splat(x), splat(y), &at_rest);
    at_rest = finite_or_0<T>(at_rest);
    const bool none = y == T(-INFINITY);
    const Sum at = none ? Sum{double(other.lowest[0]), 0} : exact_product(double(y), t_scale);
    const Sum d = log_ratio_of(at, exact_product(double(t_peak), t_scale), above);
    d_head = splat(T(d.value));
    d_rest = splat(T((d.value - double(T(d.value))) + d.lost));
  }

  template <size_t n>
  XENTROPY_INLINE_MEMBER void operator()(const Vec<T> (&x)[n], const Vec<T> (&y)[n],
                                         LogRatio<T> (&r)[n]) const {
    for (size_t q = 0; q < n; ++q) r[q] = one_vector(x[q], y[q]);
  }

 private:
  XENTROPY_INLINE_MEMBER LogRatio<T> one_vector(Vec<T> x, Vec<T> y) const {
    Vec<T> rest, lost;
    const Vec<T> head = difference(x, y, &rest);
    const Vec<T> p = exact_difference<T>(head, at_head, &lost);
    rest = finite_or_0<T>(lost + (rest - at_rest));
    return {(p + d_head) + (rest + d_rest), p + rest};
  }

  // t - s.
  XENTROPY_INLINE_MEMBER Vec<T> difference(Vec<T> x, Vec<T> y, Vec<T>* rest) const {
    Vec<T> s_rest, t_rest, lost;
    const Vec<T> s = own(x, &s_rest), t = other(y, &t_rest);
    const Vec<T> head = exact_difference<T>(t, s, &lost);
    *rest = lost + (t_rest - s_rest);
    return head;
  }
};

// What FiniteLogRatios takes from t - s: u = (t - s - at) - at_rest, d = (t - s - from) + rest.
template <class V>
struct RatioOrigin {
  V at, at_rest;  // t_m - s_m
  V from, rest;
};
template <class D>
struct FiniteOrigin {
  D from, rest;
  decltype(D{} < D{}) serves;  // is FiniteLogRatios as good as LogRatios?
};

// Differences are rounded once as they are taken from t - s, which does no harm where d is taken
// from it directly: a small d is exact then. At m, where it must be d_m to the last digit, that is
// not so; hence d goes by u where d_m is small, and rounding u is no matter. at, d: t_m - s_m and
// d_m, the heads rounded to T. steepest: the larger scale. Logits and their differences are finite.
template <class T, class D>
XENTROPY_INLINE FiniteOrigin<D> finite_origin(const SumOf<D>& at, const SumOf<D>& d,
                                              double steepest) {
  constexpr double kSmall = 0x1p-3, kNear = 0x1p13, kSteep = 0x1p20;
  const auto small = magnitude(d.value) < kSmall;
  const SumOf<D> c = exact_sum(d.value, -at.value);
  const D head = small ? at.value : rounded<T>(-c.value), lost = d.lost - at.lost;
  FiniteOrigin<D> o = {head, small ? d.value + lost : (c.value + head) + (c.lost + lost), {}};
  o.serves = (small | (magnitude(c.value) < kNear)) & (D{} + steepest < kSteep);
  return o;
}

// The same with fewer operations, for most rows: a row, or a row a lane. kScaled: one of the scales
// is not 1.
template <class T, bool kScaled>
class FiniteLogRatios {
 public:
  FiniteLogRatios(double s_scale, double t_scale, const RatioOrigin<Vec<T>>& origin)
      : own_(s_scale), other_(t_scale), origin_(origin) {}

  template <size_t n>
  XENTROPY_INLINE_MEMBER void operator()(const Vec<T> (&x)[n], const Vec<T> (&y)[n],
                                         LogRatio<T> (&r)[n]) const {
    Vec<T> head[n], lost[n];
    differences(x, y, head, lost);
    for (size_t q = 0; q < n; ++q) {
      r[q].d = (head[q] - origin_.from) + (lost[q] + origin_.rest);
      r[q].u = (head[q] - origin_.at) + (lost[q] - origin_.at_rest);
    }
  }

  // t - s = head + lost.
  template <size_t n>
  XENTROPY_INLINE_MEMBER void differences(const Vec<T> (&x)[n], const Vec<T> (&y)[n],
                                          Vec<T> (&head)[n], Vec<T> (&lost)[n]) const {
    Vec<T> moved[n], of_s[n], of_t[n];
    const Vec<T>*s = x, *t = y;
    Vec<T> scaled_s[n], scaled_t[n];
    if (kScaled) {
      for (size_t q = 0; q < n; ++q) scaled_s[q] = scaled<T>(x[q], own_, &of_s[q]);
      for (size_t q = 0; q < n; ++q) scaled_t[q] = scaled<T>(y[q], other_, &of_t[q]);
      s = scaled_s;
      t = scaled_t;
    }
    for (size_t q = 0; q < n; ++q) head[q] = t[q] - s[q];
    for (size_t q = 0; q < n; ++q) moved[q] = head[q] - t[q];
    for (size_t q = 0; q < n; ++q) lost[q] = (t[q] - (head[q] - moved[q])) - (s[q] + moved[q]);
    for (size_t q = 0; kScaled && q < n; ++q) lost[q] += of_t[q] - of_s[q];
  }

 private:
  LogitScale<T> own_, other_;
  RatioOrigin<Vec<T>> origin_;
};

// Calls use(ratios) with the FiniteLogRatios for these scales.
template <class T, class Use>
XENTROPY_INLINE auto with_ratios(double s_scale, double t_scale, const RatioOrigin<Vec<T>>& origin,
                                 const Use& use) {
  if (s_scale == 1 && t_scale == 1) {
    return use(FiniteLogRatios<T, false>(s_scale, t_scale, origin));
  }
  return use(FiniteLogRatios<T, true>(s_scale, t_scale, origin));
}

// Calls use(ratios) for a row of finite logits, with FiniteLogRatios if they serve.
template <class T, class Use>
XENTROPY_INLINE auto with_few_ratios(const LogRatios<T>& all, double s_scale, double t_scale,
                                     const Use& use) {
  const Sum at = {double(all.at_head[0]), double(all.at_rest[0])};
  const Sum d = {double(all.d_head[0]), double(all.d_rest[0])};
  const auto o = finite_origin<T>(at, d, s_scale > t_scale ? s_scale : t_scale);
  if (!o.serves) return use(all);
  return with_ratios<T>(s_scale, t_scale,
                        {all.at_head, all.at_rest, splat(T(o.from)), splat(T(o.rest))}, use);
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
