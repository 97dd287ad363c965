// One k for all rows of a block, which spares the group kernel the maxima.
//
// It changes no bit of a row, provided that with a k of its own (Anchors in group_sums.h), where
// the total is from 2^(kTop - 1) to classes * 2^(kTop + 1), the row would be settled by the same
// operations. The bounds below are such that what is within them is within those of a k of its own
// as well: others not tiny, the factor a normal number that no subnormal exp shows under. What is
// not within them is done again.
#pragma once
#include "common/peak.h"
#include "common/settle_lanes.h"

namespace xentropy {
namespace XENTROPY_TIER {

template <class T>
struct Shared;
template <>
struct Shared<float> {
  static constexpr int kTop = 55;  // as in Exp, of the largest of the first logits
  static constexpr double kMinTotal = 0x1p30, kMaxTotal = 0x1p80;
  // kTiny * kMaxTotal / 2^(Exp::kTop - 1)
  static constexpr double kLeastTail = 0x1p-17;
  // Of factor * total: from kLeastFactor * the largest total, in either case, to kMostFactor times
  // the smallest.
  static constexpr double kLeastGradient = 0x1p-40, kMostGradient = 0x1p5;
};
template <>
struct Shared<double> {
  static constexpr int kTop = 650;
  static constexpr double kMinTotal = 0x1p400, kMaxTotal = 0x1p900;
  static constexpr double kLeastTail = 0x1p-359;
  static constexpr double kLeastGradient = 0x1p-100, kMostGradient = 0x1p300;
};

struct SharedOffset {
  double k = 0;
  bool useful = false;
};

// From the first of `rows` rows at x.
template <class T>
SharedOffset guess_shared_offset(const Terms& t, const T* x, size_t rows) {
  const size_t n = rows * t.classes;
  const double k = guess_offset<T>(max_of(x, n < kProbe ? n : kProbe), t.logit_scale);
  const bool exact = __builtin_fabs(k) < Exp<T>::kMaxOffset / 2;  // and so is a k of its own
  return {k + (Exp<T>::kTop - Shared<T>::kTop), exact};
}

template <class T>
constexpr double kMostOdds = sizeof(T) == 4 ? 0x1p140 : 0x1p1000;

// Negative where the exps of a row were too large or too small. In integers, of which the bits of
// doubles keep the order: a comparison takes as long as a multiplication.
template <class T>
XENTROPY_INLINE IntVec<double> beyond_shared(VD tail_sum, VD total, VD odds) {
  typedef uint64_t U __attribute__((vector_size(kVectorBytes)));
  const auto bits = [](double v) XENTROPY_INLINE_LAMBDA { return (U)splat(v); };
  const U too_small =
      ((U)total - bits(Shared<T>::kMinTotal)) | ((U)tail_sum - bits(Shared<T>::kLeastTail));
  const U too_large = (bits(Shared<T>::kMaxTotal) - (U)total) | (bits(kMostOdds<T>) - (U)odds);
  return (IntVec<double>)(too_small | too_large);
}

// Is what makes the gradient of these rows as fine in the other units?
template <class T>
XENTROPY_INLINE IntVec<double> suits_both(const Terms& t, const SettledOf<VD>& s,
                                          const LaneFinish<T>& f) {
  const VD size = magnitude(s.g * s.mass * (1 / t.divisor));
  IntVec<double> fine =
      ((size >= Shared<T>::kLeastGradient) & (size <= Shared<T>::kMostGradient)) | (size == 0);
  return t.label_smoothing != 0 || t.z_loss != 0 ? fine & f.fine : fine;
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
