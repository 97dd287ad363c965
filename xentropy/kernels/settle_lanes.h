// settle.h for a vector of rows at a time: the same formulas, one row a float64 lane.
//
// Also how exps are added up where a lane is a row.
//
// Rows that need more care than a vector gives are left to settle.h, and marked: the
// target's exp may have lost bits, the odds overflow, or a factor is no normal number.
// Which rows those are, each row decides by its own numbers.
#pragma once
#include "lanes.h"
#include "log1p.h"
#include "settle.h"

namespace xentropy {
namespace XENTROPY_TIER {

// Many rows on their way from sums to gradient. Those that do not count have class_weight 0
// and e_target 1.
template <class T, size_t kRows>
struct LaneRows {
  alignas(kLineBytes) double others[kRows];
  alignas(kLineBytes) double others_lost[kRows];  // of float64 alone
  alignas(kLineBytes) double differences[kRows];  // sum of kSmall (logit - origin)
  alignas(kLineBytes) double e_target[kRows];
  alignas(kLineBytes) double x_target[kRows];  // logits; only where `far`
  alignas(kLineBytes) double origin[kRows];
  alignas(kLineBytes) double class_weight[kRows];
  alignas(kLineBytes) double repeat[kRows];
  alignas(kLineBytes) double upstream[kRows];
  // what comes of them
  alignas(kLineBytes) double loss[kRows];
  alignas(kLineBytes) T factor[kRows];  // Finish<T>, and e at the target
  alignas(kLineBytes) T rest[kRows];
  alignas(kLineBytes) T bias[kRows];
  alignas(kLineBytes) T at_target[kRows];
  alignas(kLineBytes) int64_t settled[kRows];   // -1: the loss is right; 0: left to settle.h
  alignas(kLineBytes) int64_t finished[kRows];  // -1: so is what makes the gradient

  // Was k right? See Exp<T>. Origin is -inf if k was guessed from nothing.
  XENTROPY_INLINE_MEMBER IntVec<double> in_range(size_t i) const {
    const VD sum = load(others + i), total = sum + load(e_target + i);
    return (total >= Exp<T>::kMinTotal) & (total < Exp<T>::kMaxTotal) & ~has_tiny<T>(sum) &
           (load(origin + i) != -INFINITY);
  }
  bool is_in_range(size_t i) const {
    const double total = others[i] + e_target[i];
    return total >= Exp<T>::kMinTotal && total < Exp<T>::kMaxTotal && !has_tiny<T>(others[i]) &&
           origin[i] != -INFINITY;
  }
};

// Adds the exps of some classes (or other terms) to the float64 sums of as many rows as a vector
// has lanes. An exp meets two roundings at most on its way there; of float64, whose exp without
// fma is off by 1.05 ulp, one.
template <size_t kClasses>
XENTROPY_INLINE void add_classes(const VF (&v)[kClasses], double* sum, double*) {
  VF all = v[0];
  if constexpr (kClasses == 4) all = (v[0] + v[1]) + (v[2] + v[3]);
  double* upper = sum + kLanes<double>;
  store(sum, load(sum) + widen_lower(all));
  store(upper, load(upper) + widen_upper(all));
}
template <size_t kClasses>
XENTROPY_INLINE void add_classes(const VD (&v)[kClasses], double* sum, double* lost) {
  LaneTotal<double> total = {load(sum), load(lost)};
  for (size_t q = 0; q + 1 < kClasses; q += 2) total.add(v[q] + v[q + 1]);
  if (kClasses == 1) total.add(v[0]);
  store(sum, total.lanes);
  store(lost, total.lost);
}

// A vector of T as float64.
XENTROPY_INLINE void store_wide(double* p, VD v) { store(p, v); }
XENTROPY_INLINE void store_wide(double* p, VF v) {
  store(p, widen_lower(v));
  store(p + kLanes<double>, widen_upper(v));
}

// Does the loss need the distances between logits?
static inline bool is_far(const Terms& t) { return t.label_smoothing != 0 || t.z_loss != 0; }

template <class T, size_t kRows>
XENTROPY_INLINE SettledOf<VD> settle_lanes(const Terms& t, const LaneRows<T, kRows>& rows,
                                           size_t i) {
  const VD others = load(rows.others + i), e_target = load(rows.e_target + i);
  const VD nll = log1p_lanes<T>(others / e_target);
  VD origin = {}, above = nll, differences = {};
  if (is_far(t)) {
    origin = load(rows.origin + i) * t.logit_scale;
    above = nll + (load(rows.x_target + i) - load(rows.origin + i)) * t.logit_scale;
    differences = load(rows.differences + i) / kSmall * t.logit_scale;
  }
  return settle<VD>(t, load(rows.class_weight + i), load(rows.repeat + i), load(rows.upstream + i),
                    {nll, above}, others, e_target, origin, differences);
}

// finish_row of settle.h. A row whose gradient is 0 altogether is fine too.
template <class T, size_t kRows>
XENTROPY_INLINE IntVec<double> finish_lanes(const Terms& t, const SettledOf<VD>& r,
                                            LaneRows<T, kRows>& rows, size_t i) {
  constexpr double kLeast = sizeof(T) == 4 ? 0x1p-120 : 0x1p-1000;
  const auto normal = [](VD v) XENTROPY_INLINE_LAMBDA {
    return (magnitude(v) >= kLeast) & (magnitude(v) <= 1 / kLeast);
  };
  const VD zero = {}, others = load(rows.others + i), e_target = load(rows.e_target + i);
  const VD total = others + e_target;
  const VD below = total * t.divisor, on_p = r.g * r.mass;
  const VD factor = rounded<T>(on_p / below);
  VD missed;
  if (sizeof(T) == 4) {
    missed = on_p / below - factor;
  } else {
    const VD moved = total - others;
    const VD lost = (others - (total - moved)) + (e_target - moved) + load(rows.others_lost + i);
    const VD below_lost = fma(total, splat(t.divisor), -below) + lost * t.divisor;
    missed = (fma(-factor, below, on_p) - factor * below_lost) / below;
  }
  VD bias = zero, at_target = zero - others;  // +0 where there are no others, as in settle.h
  if (is_far(t)) {
    bias = r.g * (r.bias / t.divisor);
    at_target = r.numerator / r.mass + (bias == zero ? zero : bias / factor);
  }
  at_target = on_p == zero ? zero : at_target;
  store_narrow(rows.factor + i, factor);
  store_narrow(rows.rest + i, missed);
  store_narrow(rows.bias + i, bias);
  store_narrow(rows.at_target + i, at_target);
  const IntVec<double> fits = normal(factor) & (magnitude(factor) <= Exp<T>::kMostFactor);
  return (fits | ((on_p == zero) & (bias == zero))) & (normal(bias) | (bias == zero)) &
         (magnitude(at_target) <= 1 / kLeast);
}

// The rows i .. i + kLanes<double>; of which all is settled and finished. A loss of nan is not.
template <class T, bool kGradient, size_t kRows>
XENTROPY_INLINE IntVec<double> settle_and_finish(const Terms& t, LaneRows<T, kRows>& rows,
                                                 size_t i) {
  const VD others = load(rows.others + i), e_target = load(rows.e_target + i);
  const SettledOf<VD> lanes = settle_lanes(t, rows, i);
  store(rows.loss + i, lanes.loss);
  const IntVec<double> settled = (e_target >= Exp<T>::kSafe) & (others <= e_target * 0x1p1000);
  __builtin_memcpy(rows.settled + i, &settled, sizeof settled);
  if (!kGradient) return settled & (lanes.loss == lanes.loss);
  const IntVec<double> finished = finish_lanes(t, lanes, rows, i) & settled;
  __builtin_memcpy(rows.finished + i, &finished, sizeof finished);
  return finished & (lanes.loss == lanes.loss);
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
