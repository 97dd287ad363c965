// settle() and finish_row() of common/settle.h for a vector of rows, one row per float64 lane.
//
// Cost: two divisions of float64 lanes for float32, three for float64.
//
// A row for which a factor is not a normal number is not `fine`; it is left to the scalar code of
// common/settle.h. Whether it is depends on the numbers of that row alone.
#pragma once
#include "simd/trees.h"
#include "common/log1p.h"
#include "common/settle.h"

namespace xentropy {
namespace XENTROPY_TIER {

// What the rows of a call differ in, besides logits and targets: nothing, whether they are ignored,
// or any option of rows and classes.
enum class Differ { kNothing, kCounting, kAll };
// kDiffer as an argument of generic lambdas.
template <Differ kDiffer>
struct Differing {
  static constexpr Differ value = kDiffer;
};

// GradientFactors<T> and the target entry, per row.
template <class T>
struct LaneFactors {
  VD factor, rest, bias, target_entry;
  IntVec<double> fine;
};

// The sums of rows, and the quotients that depend on them.
struct LaneQuotients {
  VD tail_sum, lost, e_target;  // lost: the rounding error of a float64 tail_sum
  VD odds, inverse;             // tail_sum / e_target, 1 / total
};
XENTROPY_INLINE LaneQuotients quotients(VD tail_sum, VD lost, VD e_target) {
  return {tail_sum, lost, e_target, tail_sum / e_target, 1.0 / (tail_sum + e_target)};
}

// factor and rest of finish_row, and whether the factor is fine.
template <class T>
XENTROPY_INLINE LaneFactors<T> factor_lanes(const Terms& t, VD on_p, const LaneQuotients& sums) {
  LaneFactors<T> f = {};
  if (sizeof(T) == 4) {
    f.factor = on_p * (1 / t.divisor) * sums.inverse;  // roundings of float64 do not show
  } else {
    const LaneSums total = exact_sums(sums.tail_sum, sums.e_target);
    const VD divisor = splat(t.divisor), below = total.value * divisor;
    const VD below_lost =
        product_error<double>(total.value, divisor, below) + (total.lost + sums.lost) * divisor;
    f.factor = on_p / below;
    const VD product = f.factor * below;
    f.rest = ((on_p - product) - product_error<double>(f.factor, below, product) -
              f.factor * below_lost) /
             below;
  }
  const VD size = magnitude(f.factor);
  f.fine = (size >= kMinFactor<T>)&(size <= Exp<T>::kMaxFactor);
  if (sizeof(T) == 8 && !kHasFma) f.fine &= f.rest == f.rest;  // a splitting may have overflowed
  return f;
}

// Sets the gradient of the selected rows to 0.
template <class T>
XENTROPY_INLINE void zero_gradients(IntVec<double> rows, LaneFactors<T>* f) {
  const VD zero = {};
  f->factor = rows ? zero : f->factor;
  f->rest = rows ? zero : f->rest;
  f->bias = rows ? zero : f->bias;
  f->target_entry = rows ? zero : f->target_entry;
  f->fine |= rows;
}

// The remaining steps of finish_row; f has r.numerator / r.mass as target entry. `biased`: the bias
// is not 0; `target_biased`: it applies to the target too. Rows without weight or upstream gradient
// are fine: their gradient is 0.
template <class T>
XENTROPY_INLINE LaneFactors<T> finish_target(const Terms& t, const SettledOf<VD>& r, bool biased,
                                             bool target_biased, LaneFactors<T> f) {
  constexpr double kMinExactExp = kMinFactor<T>;
  if (biased) {
    const VD bias = r.g * r.bias;  // float32: a second rounding of float64 does not show
    f.bias = sizeof(T) == 4 ? bias * (1 / t.divisor) : bias / t.divisor;
    if (target_biased) f.target_entry += f.bias / rounded<T>(f.factor);
    const VD of_bias = magnitude(f.bias);
    f.fine &= (of_bias >= kMinExactExp) & (of_bias <= 1 / kMinExactExp);
  }
  f.fine &= magnitude(f.target_entry) <= 1 / kMinExactExp;
  if (any(~f.fine)) {
    zero_gradients((r.g * r.mass == 0) & (r.g * r.numerator == 0) & (r.g * r.bias == 0), &f);
  }
  return f;
}

// finish_row for class indices, where the bias is the same for every class.
template <class T>
XENTROPY_INLINE LaneFactors<T> finish_lanes(const Terms& t, const SettledOf<VD>& r,
                                            const LaneQuotients& sums) {
  const VD on_p = r.g * r.mass;
  LaneFactors<T> f = factor_lanes<T>(t, on_p, sums);
  const bool biased = t.label_smoothing != 0;
  if (biased || t.z_loss != 0) {
    f.target_entry = r.numerator / r.mass;
    return finish_target<T>(t, r, biased, true, f);
  }
  f.target_entry = VD{} - sums.tail_sum;  // +0 for an empty tail, as in settle.h
  f.fine |= on_p == 0;
  return f;
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
