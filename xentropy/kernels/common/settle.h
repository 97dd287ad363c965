// The loss and the gradient factors of a row, from its sums: all options fold into a few numbers.
//
// With x scaled, q_c the target masses, Q their sum, and unit = 1 / log(base):
//
//     loss = sample_weight * (unit * sum_c q_c (lse - x_c) + z lse^2)
//     d loss / d logits_c = sample_weight * scale * ((unit Q + 2 z lse) p_c - unit q_c)
//
// At the target y, p_y may round to 1. There Q p - q is computed as (Q - q) p - q (1 - p), with
// 1 - p = tail_sum / total, so that nothing cancels.
#pragma once
#include "common/log1p.h"
#include "common/sums.h"
#include "simd/trees.h"
#include "tier.h"

namespace xentropy {
namespace XENTROPY_TIER {

// D is double, or a vector of doubles with one row per lane.

// mass * value, where 0 * inf = 0, as in 0 log 0 = 0.
template <class D>
XENTROPY_INLINE D mass_times(D mass, D value) {
  return ((mass == 0) & (value == value)) ? D{} : mass * value;
}

// The logarithms of a row that its loss needs.
template <class D>
struct LogsOf {
  D negative_log_p;  // of the target
  D above_origin;    // lse - origin
};
using RowLogs = LogsOf<double>;

// Both use log1p(tail_sum / e_target), which is exact where the target is almost certain. The
// exception is a target's exp that may have lost bits (or a quotient that overflows): the loss is
// then so large that the difference of logarithms is exact enough.
template <class T, class D>
XENTROPY_INLINE auto odds_are_exact(const RowSumsOf<D>& s) {
  return (s.e_target >= Exp<T>::kMinFullExp) & (s.tail_sum <= s.e_target * 0x1p1000);
}
template <class D>
XENTROPY_INLINE LogsOf<D> logs_of_odds(const RowSumsOf<D>& s) {
  const D nll = log1p_of(s.tail_sum / s.e_target);
  return {nll, nll + (s.target_distance - s.origin_distance)};
}
template <class T>
XENTROPY_INLINE RowLogs row_logs(const RowSums& s) {
  if (odds_are_exact<T>(s)) return logs_of_odds(s);
  // No total is below 2^(kTop - 1).
  const double log_total = log1p_of(2 * (s.total() * Exp<T>::kFromTop) - 1) - kLn2;
  return {log_total - s.target_distance, log_total - s.origin_distance};
}

template <class S>
XENTROPY_INLINE double sample_weight_of(const Block<S>& b, size_t r) {
  return b.sample_weight ? b.sample_weight[r] : 1;
}
template <class S>
XENTROPY_INLINE double upstream_of(const Block<S>& b, size_t r) {
  return b.upstream ? b.upstream[r] * b.upstream_all : b.upstream_all;
}

// The loss of a row, and with g = upstream * sample_weight * logit_scale its gradient
//
//     gradient_c = g / divisor * (mass * e_c / total - bias * q_c)
//
// where q_c is 1 for class indices; the gradient at the target is g / divisor * numerator / total.
template <class D>
struct SettledOf {
  D loss, g, mass, numerator, bias;
};
using Settled = SettledOf<double>;

// A row with a class index y: the target mass is (1 - smoothing) weight_y at y plus smoothing / C
// for every class. Origin and differences are those of RowSums.
template <class D>
XENTROPY_INLINE SettledOf<D> settle(const Terms& t, D class_weight, D sample_weight, D upstream,
                                    const LogsOf<D>& logs, D tail_sum, D e_target, D origin,
                                    D differences) {
  const double classes = double(t.classes);
  const double uniform = t.label_smoothing != 0 ? t.label_smoothing / classes : 0;
  const D hard = (1 - t.label_smoothing) * class_weight;
  D loss = t.unit * mass_times(hard, logs.negative_log_p), z_slope = {};
  if (t.label_smoothing != 0)
    loss += t.unit * uniform * (classes * logs.above_origin - differences);
  if (t.z_loss != 0) {
    const D lse = origin + logs.above_origin;
    loss += t.z_loss * lse * lse;
    z_slope = 2 * t.z_loss * lse;
  }
  const D g = upstream * sample_weight * t.logit_scale;
  const D target_mass = t.unit * (hard + uniform);
  const D rest = t.unit * uniform * (classes - 1) + z_slope;
  return {sample_weight * loss, g, target_mass + rest, rest * e_target - target_mass * tail_sum,
          D{} + t.unit * uniform};
}
template <class T>
XENTROPY_INLINE Settled settle(const Terms& t, double class_weight, double sample_weight,
                               double upstream, const RowSums& s) {
  return settle<double>(t, class_weight, sample_weight, upstream, row_logs<T>(s), s.tail_sum,
                        s.e_target, s.origin, s.differences);
}

// A row with dense targets. The most probable class m stands for the target: q_m is its mass,
// q_tail the sum of all other masses, and distance = sum_c q_c (x_m - x_c), before logit_scale.
template <class D>
XENTROPY_INLINE SettledOf<D> settle_dense(const Terms& t, D q_m, D q_tail, D distance,
                                          D sample_weight, D upstream, const LogsOf<D>& logs,
                                          D tail_sum, D e_m, D origin) {
  const D mass = q_tail + q_m;
  D loss = t.unit * (mass * logs.negative_log_p + distance * t.logit_scale), z_slope = {};
  if (t.z_loss != 0) {
    const D lse = origin + logs.above_origin;
    loss += t.z_loss * lse * lse;
    z_slope = 2 * t.z_loss * lse;
  }
  const D rest = t.unit * q_tail + z_slope;
  return {sample_weight * loss, upstream * sample_weight * t.logit_scale, t.unit * mass + z_slope,
          rest * e_m - t.unit * q_m * tail_sum, D{} + t.unit};
}

template <class S>
XENTROPY_INLINE Settled settle_row(const Terms& t, const Block<S>& b, size_t r, const RowSums& s) {
  const double class_weight = b.weight ? b.weight[b.labels[r]] : 1;
  return settle<Arithmetic<S>>(t, class_weight, sample_weight_of(b, r), upstream_of(b, r), s);
}

// Maps a scratch row to the gradient: e * (factor + rest) - bias * q. rest is the rounding error of
// factor.
template <class T>
struct GradientFactors {
  T factor, rest, bias;
};

// GradientFactors<T> in vectors, applied to the exps (and to the target entry, which replaces the
// target's exp). A bias of 0 changes no bit: x - 0 is x, for x = -0 too.
template <class T>
struct GradientMap {
  Vec<T> factor = {}, rest = {}, minus_bias = {};

  GradientMap() {}
  GradientMap(Vec<T> f, Vec<T> r, Vec<T> b) : factor(f), rest(r), minus_bias(-b) {}
  GradientMap(GradientFactors<T> f) : GradientMap(splat(f.factor), splat(f.rest), splat(f.bias)) {}

  XENTROPY_INLINE_MEMBER Vec<T> operator()(Vec<T> e) const {
    return fma(e, factor, fma(e, rest, minus_bias));
  }
};

// The same where the bias is 0. The third constant would cost 5 to 8 % of a streamed row (Zen 4,
// AVX-512).
template <class T>
struct UnbiasedMap {
  Vec<T> factor = {}, rest = {};

  UnbiasedMap() {}
  UnbiasedMap(GradientFactors<T> f) : factor(splat(f.factor)), rest(splat(f.rest)) {}

  XENTROPY_INLINE_MEMBER Vec<T> operator()(Vec<T> e) const { return fma(e, factor, e * rest); }
};

// A rest that no rounding shows, but not 0: an infinite gradient times 0 would be nan.
template <class T>
constexpr double kNegligibleRest = sizeof(T) == 4 ? 0x1p-126 : 0x1p-1022;

// Fallback for factors that are not normal numbers, including inf and nan: computes the gradient in
// float64 into the scratch row, whatever the exponent offset of the exps.
template <class T>
GradientFactors<T> finish_in_float64(const Terms& t, const Settled& r, double total, size_t target,
                                     const T* q, T* e) {
  const double g = r.g / t.divisor;
  for (size_t c = 0; c < t.classes; ++c) {
    e[c] = T((r.mass * (double(e[c]) / total) - r.bias * (q ? double(q[c]) : 1)) * g);
  }
  e[target] = T(r.numerator / total * g);
  return {T(1), T(kNegligibleRest<T>), T(0)};
}

template <class T>
constexpr double kMinFactor = sizeof(T) == 4 ? 0x1p-120 : 0x1p-1000;

// GradientFactors<T>, the target entry (the gradient of the target in the units of the exps), and
// whether these are normal numbers.
template <class D>
struct FactorsOf {
  D factor, rest, bias, target_entry;
  decltype(D{} < D{}) normal;
};

// biased: the bias may not be 0; dense: the target entry has none.
template <class T, class D>
XENTROPY_INLINE FactorsOf<D> factors_of(const Terms& t, const SettledOf<D>& r,
                                        const RowSumsOf<D>& s, bool biased, bool dense) {
  constexpr double kMin = kMinFactor<T>, kMax = 1 / kMinFactor<T>;
  const D divisor = D{} + t.divisor, zero = {};
  const SumOf<D> total = s.exact_total();
  const D below = total.value * divisor;
  const D below_lost = product_minus(total.value, divisor, below) + total.lost * divisor;
  const D on_p = r.g * r.mass, factor = rounded<T>(on_p / below), size = magnitude(factor);
  FactorsOf<D> f = {factor, zero, zero, zero, {}};
  f.normal = (size >= kMin) & (size <= kMax);
  f.rest = (product_minus(-factor, below, -on_p) - factor * below_lost) / below;
  D bias_of_target = {};
  if (biased) {
    f.bias = (r.bias != 0) ? r.g * r.bias / divisor : zero;
    if (!dense) bias_of_target = (f.bias == 0) ? zero : f.bias / factor;
    const D of_bias = magnitude(f.bias);
    f.normal &= (f.bias == 0) | ((of_bias >= kMin) & (of_bias <= kMax));
  }
  f.target_entry = r.numerator / r.mass + bias_of_target;
  f.normal &= magnitude(f.target_entry) <= kMax;
  f.normal &= f.rest == f.rest;  // without FMA not so where the splitting of a product overflows
  return f;
}

// Replaces the target's exp by the target entry. q is null (all 1), or the masses, with 0 at the
// target.
template <class T>
XENTROPY_INLINE GradientFactors<T> finish_row(const Terms& t, const Settled& r, const RowSums& s,
                                              size_t target, const T* q, T* e) {
  const FactorsOf<double> f = factors_of<T>(t, r, s, r.bias != 0, q != nullptr);
  if (magnitude(f.factor) > Exp<T>::kMaxFactor) flush_row(e, t.classes);
  if (!f.normal) return finish_in_float64(t, r, s.exact_total().value, target, q, e);
  e[target] = T(f.target_entry);
  return {T(f.factor), T(f.rest), T(f.bias)};
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
