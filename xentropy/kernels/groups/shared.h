// One exponent offset k for all rows of a block, so that the group kernel need not find the maximum
// of each row. A row keeps the bits that it has with an offset k' of its own, for the following
// reason.
//
// Call the sums of a row tail and total with k, tail' and total' with k'. Every exp with k' is
// 2^(k - k') times that with k, hence
//
//     tail' = 2^(k - k') tail,  total' = 2^(k - k') total
//
// The power of two changes no bit of a loss or a gradient as long as no number involved leaves the
// normal range and both computations take the same branches. Below, kTop, kMinExactTail,
// kMinExactExp and kMaxFactor are constants of Exp<T>; kMinTotal, kMaxTotal, kMinSharedTail,
// kMinGradient and kMaxGradient those of Shared<T>. k' puts the largest exp of a row near 2^kTop,
// to a factor below 2 (Anchors in common/exp.h):
//
//     2^(kTop - 1) <= total' <= classes * 2^(kTop + 1) <= kMaxTotal                         (1)
//
// Let G = |g * mass / divisor|, which is |factor| * total with any offset. sums_out_of_range tests
// (2), factors_in_range tests (3), and a row that satisfies both is accepted:
//
//     kMinTotal <= total <= kMaxTotal,  kMinSharedTail <= tail,  tail / e_target <= kMaxOdds   (2)
//     kMinGradient <= G <= kMaxGradient,  or G = 0                                       (3)
//
// Two inequalities follow. The first is for the tail, from (1) and (2):
//
//     tail' = tail * total' / total >= kMinSharedTail * 2^(kTop - 1) / kMaxTotal = kMinExactTail
//
// and tail >= kMinSharedTail >= kMinExactTail. So exps below kMinExactExp change neither sum. The
// second is for the factor, from (1), (2) and (3):
//
//     kMinFactor <= kMinGradient / kMaxTotal <= G / total, G / total' <= kMaxFactor
//
// where the last step holds because kMaxGradient <= kMaxFactor * min(kMinTotal, 2^(kTop - 1)). So
// both factors are normal numbers, and exps below kMinExactExp change no gradient. If G = 0, both
// factors are 0.
//
// e_target = total / (1 + tail / e_target) is a normal number with either offset: by (1) and (2) at
// least about 2^30 / 2^140 in float32 and 2^399 / 2^1000 in float64. So tail / e_target, and with
// it the loss, has the same bits.
//
// An accepted row therefore also passes the checks that losses_and_factors makes with k'
// (sums_in_range, kMaxOdds, the factor): both computations take the same branches.
//
// Rows that are not accepted are computed again with offsets of their own.
#pragma once
#include "common/peak.h"
#include "common/settle_lanes.h"

namespace xentropy {
namespace XENTROPY_TIER {

template <class T>
struct Shared;
template <>
struct Shared<float> {
  static constexpr int kTop = 55;  // as Exp<T>::kTop, but for the largest of the probed logits
  static constexpr double kMinTotal = 0x1p30, kMaxTotal = 0x1p80;
  // kMinExactTail * kMaxTotal / 2^(Exp::kTop - 1)
  static constexpr double kMinSharedTail = 0x1p-17;
  // Bounds of G: kMinFactor * kMaxTotal, and kMaxFactor * the least total with either offset.
  static constexpr double kMinGradient = 0x1p-40, kMaxGradient = 0x1p5;
};
template <>
struct Shared<double> {
  static constexpr int kTop = 650;
  static constexpr double kMinTotal = 0x1p400, kMaxTotal = 0x1p900;
  static constexpr double kMinSharedTail = 0x1p-359;
  static constexpr double kMinGradient = 0x1p-100, kMaxGradient = 0x1p300;
};

// useful: the offset is tried for the following groups.
struct SharedOffset {
  double k = 0;
  bool useful = false;
};

// Guesses k from the first logits of the `rows` rows at x.
template <class T>
SharedOffset guess_shared_offset(const Terms& t, const T* x, size_t rows) {
  const size_t n = rows * t.classes;
  const double k = guess_offset<T>(max_of(x, n < kProbe ? n : kProbe), t.logit_scale);
  const bool exact = __builtin_fabs(k) < Exp<T>::kMaxOffset / 2;  // k' is in range as well
  // total * divisor, and the splitting of such products where there is no FMA
  const bool finite = t.divisor <= 0x1p990 / Shared<T>::kMaxTotal;
  return {k + (Exp<T>::kTop - Shared<T>::kTop), exact && finite};
}

template <class T>
constexpr double kMaxOdds = sizeof(T) == 4 ? 0x1p140 : 0x1p1000;

// Negative in lanes that violate (2), nan included. The comparisons are of integers, because the
// bits of positive doubles have the order of their values, and a comparison of doubles takes as
// long as a multiplication.
template <class T>
XENTROPY_INLINE IntVec<double> sums_out_of_range(VD tail_sum, VD total, VD odds) {
  typedef uint64_t U __attribute__((vector_size(kVectorBytes)));
  const auto bits = [](double v) XENTROPY_INLINE_LAMBDA { return (U)splat(v); };
  const U too_small =
      ((U)total - bits(Shared<T>::kMinTotal)) | ((U)tail_sum - bits(Shared<T>::kMinSharedTail));
  const U too_large = (bits(Shared<T>::kMaxTotal) - (U)total) | (bits(kMaxOdds<T>) - (U)odds);
  return (IntVec<double>)(too_small | too_large);
}

// Whether rows satisfy (3). With label smoothing or z-loss f.fine is required as well, which also
// covers the bias, which no offset changes, and the target entry.
template <class T>
XENTROPY_INLINE IntVec<double> factors_in_range(const Terms& t, const SettledOf<VD>& s,
                                                const LaneFactors<T>& f) {
  const VD size = magnitude(s.g * s.mass * (1 / t.divisor));
  IntVec<double> fine =
      ((size >= Shared<T>::kMinGradient) & (size <= Shared<T>::kMaxGradient)) | (size == 0);
  return t.label_smoothing != 0 || t.z_loss != 0 ? fine & f.fine : fine;
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
