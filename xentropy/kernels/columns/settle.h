// Losses and factors of the rows of a segment from their sums, by common/settle_lanes.h; and the
// addition of exps where a lane is a row.
//
// Rows whose target's exp may have lost bits are left to the fallback too (`settled` is 0).
#pragma once
#include "common/settle_lanes.h"

namespace xentropy {
namespace XENTROPY_TIER {

// The sums of kRows rows, and the results. Ignored rows have class_weight 0 and e_target 1.
template <class T, size_t kRows>
struct LaneRows {
  alignas(kLineBytes) double tail_sum[kRows];
  alignas(kLineBytes) double tail_lost[kRows];    // for float64 only
  alignas(kLineBytes) double differences[kRows];  // sum of kLogitSumScale (logit - origin)
  alignas(kLineBytes) double e_target[kRows];
  alignas(kLineBytes) double x_target[kRows];  // logits; set only if needs_distances()
  alignas(kLineBytes) double origin[kRows];
  alignas(kLineBytes) double class_weight[kRows];
  alignas(kLineBytes) double sample_weight[kRows];
  alignas(kLineBytes) double upstream[kRows];
  // results
  alignas(kLineBytes) double loss[kRows];
  alignas(kLineBytes) T factor[kRows];  // GradientFactors<T>, and the target entry
  alignas(kLineBytes) T rest[kRows];
  alignas(kLineBytes) T bias[kRows];
  alignas(kLineBytes) T target_entry[kRows];
  alignas(kLineBytes) int64_t settled[kRows];   // -1: the loss is right; 0: fallback
  alignas(kLineBytes) int64_t finished[kRows];  // -1: so are the factors of the gradient

  // The map from exps to gradients for the rows i, i + 1, ...
  XENTROPY_INLINE_MEMBER GradientMap<T> finisher(size_t i) const {
    return {load(factor + i), load(rest + i), load(bias + i)};
  }

  // Whether k was right, see Exp<T>. origin is -inf if all probed logits were.
  XENTROPY_INLINE_MEMBER IntVec<double> in_range(size_t i) const {
    return sums_in_range<T>(load(tail_sum + i), load(e_target + i)) &
           (load(origin + i) != -INFINITY);
  }
  bool is_in_range(size_t i) const {
    return sums_in_range<T>(tail_sum[i], e_target[i]) && origin[i] != -INFINITY;
  }
};

// Adds the exps (or other terms) of kClasses classes, 1 or 4, to the float64 sums of as many rows
// as a vector has lanes. An exp is rounded at most twice on its way into the sum; once for float64,
// whose exp without fma is off by 1.05 ulp.
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

// Stores a vector of T as float64.
XENTROPY_INLINE void store_wide(double* p, VD v) { store(p, v); }
XENTROPY_INLINE void store_wide(double* p, VF v) {
  store(p, widen_lower(v));
  store(p + kLanes<double>, widen_upper(v));
}

// Whether the loss needs distances between logits.
static inline bool needs_distances(const Terms& t) {
  return t.label_smoothing != 0 || t.z_loss != 0;
}

// Unlike groups, columns use the rest of a float32 factor: their exps are rounded once more on the
// way into the sums.
template <class T, size_t kRows>
XENTROPY_INLINE void store_factors(const LaneFactors<T>& f, LaneRows<T, kRows>& rows, size_t i) {
  const VD factor = rounded<T>(f.factor);
  store_narrow(rows.factor + i, factor);
  store_narrow(rows.rest + i, f.rest + (f.factor - factor));
  store_narrow(rows.bias + i, f.bias);
  store_narrow(rows.target_entry + i, f.target_entry);
}

// Loss and factors of the rows [i, i + kLanes<double>). Returns in which lanes all are right; a nan
// loss counts as wrong. kDiffer: what the rows differ in. kGradient: compute the factors too.
template <Differ kDiffer, bool kGradient, class T, size_t kRows>
XENTROPY_INLINE IntVec<double> losses_and_factors_of_lanes(const Terms& t, LaneRows<T, kRows>& rows,
                                                           size_t i) {
  const VD tail_sum = load(rows.tail_sum + i), e_target = load(rows.e_target + i);
  const VD lost = sizeof(T) == 8 ? load(rows.tail_lost + i) : VD{};
  const LaneQuotients sums = quotients(tail_sum, lost, e_target);
  const VD nll = log1p_lanes<T>(sums.odds);
  VD origin = {}, above = nll, differences = {}, class_weight = splat(1.0),
     sample_weight = class_weight;
  VD upstream = splat(rows.upstream[0]);
  if (kDiffer == Differ::kAll) {
    if (needs_distances(t)) {
      origin = load(rows.origin + i) * t.logit_scale;
      above = nll + (load(rows.x_target + i) - load(rows.origin + i)) * t.logit_scale;
      differences = load(rows.differences + i) / kLogitSumScale * t.logit_scale;
    }
    class_weight = load(rows.class_weight + i);
    sample_weight = load(rows.sample_weight + i);
    upstream = load(rows.upstream + i);
  }
  const SettledOf<VD> r = settle<VD>(t, class_weight, sample_weight, upstream, {nll, above},
                                     tail_sum, e_target, origin, differences);
  store(rows.loss + i, r.loss);
  const IntVec<double> settled = (e_target >= Exp<T>::kMinFullExp) & (sums.odds <= 0x1p1000);
  __builtin_memcpy(rows.settled + i, &settled, sizeof settled);
  if (!kGradient) return settled & (r.loss == r.loss);
  LaneFactors<T> f = finish_lanes<T>(t, r, sums);
  f.target_entry = f.factor == 0 ? VD{} : f.target_entry;
  store_factors(f, rows, i);
  const IntVec<double> finished = f.fine & settled;
  __builtin_memcpy(rows.finished + i, &finished, sizeof finished);
  return finished & (r.loss == r.loss);
}

// Losses and factors of the first n rows; false if one of them needs the fallback. `differ`: rows
// differ in more than logits and targets. kGradient: compute the factors too.
template <bool kGradient, class T, size_t kRows>
bool losses_and_factors(const Terms& t, bool differ, LaneRows<T, kRows>& rows, size_t n) {
  Terms plain = t;
  plain.label_smoothing = plain.z_loss = 0;
  IntVec<double> fine = ~IntVec<double>{};
  const auto settle_all = [&](const Terms& terms, auto kind) XENTROPY_INLINE_LAMBDA {
    for (size_t i = 0; i < n; i += kLanes<double>) {
      fine &= losses_and_factors_of_lanes<kind.value, kGradient>(terms, rows, i) & rows.in_range(i);
    }
  };
  if (needs_distances(t)) {
    settle_all(t, Differing<Differ::kAll>());
  } else if (differ) {
    settle_all(plain, Differing<Differ::kAll>());
  } else {
    settle_all(plain, Differing<Differ::kNothing>());
  }
  return !any(~fine);
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
