// From the sums of a row to its loss and gradient: all options fold into a few numbers.
//
// With x scaled, q_c the target masses, Q their sum, and unit = 1 / log(base):
//
//     loss = repeat * (unit * sum_c q_c (lse - x_c) + z lse^2)
//     d loss / d logits_c = g * ((unit Q + 2 z lse) p_c - unit q_c),  g = upstream repeat scale
//
// At the target, p_y may be 1 to the last bit. There (Q p - q) is written as
// (Q - q) p - q (1 - p), with 1 - p = others / total: nothing cancels.
#pragma once
#include "sums.h"
#include "tier.h"

namespace xentropy {
namespace XENTROPY_TIER {

// mass * value with 0 * inf = 0, as in 0 log 0 = 0.
XENTROPY_INLINE double mass_times(double mass, double value) {
  return mass == 0 && value == value ? 0 : mass * value;
}

// -log p of the target. An exp below kSafe may have lost bits; the loss is then so large
// that the difference of logarithms is exact enough.
template <class T>
XENTROPY_INLINE double negative_log_p(const RowSums& s) {
  if (s.e_target >= Exp<T>::kSafe) return log1p(s.others / s.e_target);
  return log(s.total()) - s.target_distance;
}

XENTROPY_INLINE double log_sum_exp(const RowSums& s) { return s.offset + log(s.total()); }

// What a row contributes: its loss, and
//
//     gradient_c = g * mass * e_c / total - bias, but at the target g * numerator / total
struct Settled {
  double loss, g, mass, numerator, bias;
};

// A row with a class index: mass (1 - smoothing) weight_y at y and smoothing / C everywhere.
template <class T>
XENTROPY_INLINE Settled settle(const Terms& t, double class_weight, double repeat, double upstream,
                               const RowSums& s) {
  const double hard = (1 - t.label_smoothing) * class_weight;
  double loss = t.unit * mass_times(hard, negative_log_p<T>(s));
  double uniform = 0, shift = 0;
  if (t.label_smoothing != 0 || t.z_loss != 0) {
    const double lse = log_sum_exp(s), classes = double(t.classes);
    uniform = t.label_smoothing / classes;
    if (uniform != 0) loss += t.unit * uniform * (classes * (lse - s.origin) - s.differences);
    loss += t.z_loss * lse * lse;
    shift = 2 * t.z_loss * lse;
  }
  const double g = upstream * repeat * t.logit_scale;
  const double at_target = t.unit * (hard + uniform);
  const double rest = t.unit * uniform * (double(t.classes) - 1) + shift;
  return {repeat * loss, g, at_target + rest, rest * s.e_target - at_target * s.others,
          g * t.unit * uniform};
}

// How a row of scratch becomes gradient: e * (factor + rest) - bias. The rest is what
// rounding the factor lost.
template <class T>
struct Finish {
  T factor, rest, bias;
};

// Puts the target's gradient into the scratch row, in the units of the others. Where the
// factor leaves the normal range (or is 0, inf, nan) it is multiplied in here instead.
template <class T>
XENTROPY_INLINE Finish<T> finish_row(const Settled& r, double total, size_t classes, size_t target,
                                     T* e) {
  constexpr double kLeast = sizeof(T) == 4 ? 0x1p-120 : 0x1p-1000;
  const double on_p = r.g * r.mass, factor = double(T(on_p / total));
  const double at_target = r.numerator / r.mass + r.bias / factor;
  if (__builtin_fabs(factor) >= kLeast && __builtin_fabs(factor) <= 1 / kLeast &&
      __builtin_fabs(at_target) <= 1 / kLeast) {
    e[target] = T(at_target);
    return {T(factor), T(__builtin_fma(-factor, total, on_p) / total), T(r.bias)};
  }
  for (size_t c = 0; c < classes; ++c) e[c] = T(double(e[c]) / total * on_p);
  e[target] = T(r.numerator / total * r.g + r.bias);
  return {T(1), T(0), T(r.bias)};
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
