// Steps 1 to 3 of the column kernel: the exps of a segment, one vector of rows at a time, and their
// sums over the classes.
#pragma once
#include "columns/segment.h"

namespace xentropy {
namespace XENTROPY_TIER {

constexpr size_t kClassesAtOnce = 4;  // their exps are added in T: two roundings each
constexpr size_t kColumnProbe = 4;    // the first logits of a row, from which k is guessed

// kScaled: logit_scale is not 1. kGradient: keep the exps, from which the gradient is made.
template <class T, bool kScaled, bool kGradient>
class SegmentExps {
  static constexpr size_t L = kLanes<T>, D = kLanes<double>;
  using Int = typename Segment<T>::Int;

 public:
  SegmentExps(const Terms& t, const Block<T>& b, Arena& arena)
      : s_(t, b, arena), scale_(t.logit_scale), needs_distances_(needs_distances(t)) {}

  Segment<T>& segment() { return s_; }

  // Step 1.
  void probe() {
    const size_t classes = s_.t.classes < kColumnProbe ? s_.t.classes : kColumnProbe;
    for (size_t i = 0; i < s_.n; i += L) guess(i, largest(i, classes));
  }

  // Step 2 for the kClasses classes from c on and n rows from i on.
  template <size_t kClasses>
  XENTROPY_INLINE_MEMBER void exps_of(size_t c, size_t i, size_t n) {
    const size_t end = i + n;
    for (; i + L <= end; i += L) exps_at<kClasses, true>(c, i, L);
    if (i < end) exps_at<kClasses, false>(c, i, end - i);
  }

  // Step 3.
  void check() {
    IntVec<double> bad = {};
    for (size_t i = 0; i < s_.n; i += L) extract_targets(i);
    for (size_t i = 0; i < s_.n; i += D) bad |= ~s_.rows.in_range(i);
    if (any(bad)) recompute_from_maximum();
  }

 private:
  XENTROPY_INLINE_MEMBER Vec<T> largest(size_t i, size_t classes) const {
    Vec<T> m = s_.logits(0, i);
    for (size_t c = 1; c < classes; ++c) m = max(m, s_.logits(c, i));
    return m;
  }

  // The offset k of the rows at i for which the exp of `origin` is about 2^kTop; resets the sums.
  XENTROPY_INLINE_MEMBER void guess(size_t i, Vec<T> origin) {
    constexpr T kMost = T(Exp<T>::kMaxOffset), kRound = Exponent<T>::kMagic;
    constexpr T kBelow = T(kHasScalef ? Exp<T>::kFlush : Exponent<T>::kBias);
    const T estimate = T(kLn2 / s_.t.logit_scale);
    Vec<T> n = max(splat(-kMost), origin * (scale_.head * Exp<T>::kLog2E));
    n = n > kMost ? splat(kMost) : n;
    const Vec<T> k = ((n + kRound) - kRound) - T(Exp<T>::kTop);
    store(s_.anchor + i, kRoundToInteger<T> - k);
    store(s_.lowest + i, (k - kBelow) * estimate);
    store(s_.highest + i, (k + T(Exponent<T>::kBias)) * estimate);
    store(s_.origin + i, origin);
    store_wide(s_.rows.origin + i, origin);
    for (size_t q = i; q < i + L; ++q) {
      s_.rows.tail_sum[q] = s_.rows.tail_lost[q] = s_.rows.differences[q] = 0;
      s_.differences_lost[q] = 0;
      s_.target[q] = 0;
    }
  }

  // The `lanes` rows from i on, kClasses classes from c on; kWhole: `lanes` is L.
  template <size_t kClasses, bool kWhole>
  XENTROPY_INLINE_MEMBER void exps_at(size_t c, size_t i, size_t lanes) {
    const ptrdiff_t stride = s_.b.logits_class_stride;
    const T* x = s_.x + ptrdiff_t(c) * stride + i;
    const Vec<T> zero = {};
    Vec<T> v[kClasses];
    for (size_t q = 0; q < kClasses; ++q) {
      const T* at = x + ptrdiff_t(q) * stride;
      v[q] = kWhole ? load(at) : load_first(at, lanes, zero);
    }
    if (s_.smooth) add_differences(v, i);
    const ExponentOffset<T> offset = {load(s_.anchor + i), load(s_.lowest + i),
                                      load(s_.highest + i)};
    const DirectExp<T, kScaled> exp = {offset, scale_};
    for (size_t q = 0; q < kClasses; ++q) v[q] = exp(v[q]);
    add_exps(v, c, i);
  }

  // Adds kLogitSumScale (x - origin) of kClasses classes, for label smoothing.
  template <size_t kClasses>
  XENTROPY_INLINE_MEMBER void add_differences(const Vec<T> (&x)[kClasses], size_t i) {
    const Vec<T> small = splat(T(kLogitSumScale)), small_origin = load(s_.origin + i) * small;
    Vec<T> d[kClasses];
    for (size_t q = 0; q < kClasses; ++q) d[q] = fma(x[q], small, -small_origin);
    add_classes(d, s_.rows.differences + i, s_.differences_lost + i);
  }

  // Stores the exps of the kClasses classes from c on and adds them to the sums, without the
  // targets' exps.
  template <size_t kClasses>
  XENTROPY_INLINE_MEMBER void add_exps(Vec<T> (&e)[kClasses], size_t c, size_t i) {
    const size_t width = s_.width;
    T* to = kGradient ? s_.exps_of_class(c) + i : nullptr;
    const IntVec<T> label = s_.labels(i);
    const Vec<T> zero = {};
    Vec<T> target = load(s_.target + i);
    for (size_t q = 0; q < kClasses; ++q) {
      if (kGradient) store(to + q * width, e[q]);
      const auto hit = label == Int(c + q);
      target = hit ? e[q] : target;
      e[q] = hit ? zero : e[q];
    }
    store(s_.target + i, target);
    add_classes(e, s_.rows.tail_sum + i, s_.rows.tail_lost + i);
  }

  // Adds the rounding errors of float64 sums to the sums, as far as their precision allows.
  XENTROPY_INLINE_MEMBER void gather_lost(size_t i) {
    if (sizeof(T) == 4) return;
    LaneRows<T, Segment<T>::N>& rows = s_.rows;
    const VD tail_sum = load(rows.tail_sum + i), lost = load(rows.tail_lost + i);
    const VD sum = tail_sum + lost;  // |lost| is far smaller
    store(rows.tail_sum + i, sum);
    store(rows.tail_lost + i, lost - (sum - tail_sum));
    const VD rest = load(s_.differences_lost + i);  // nan where the sum is infinite
    store(rows.differences + i, load(rows.differences + i) + (rest == rest ? rest : VD{}));
  }

  // Sets e_target of the rows [i, i + L); 1 for ignored rows.
  void extract_targets(size_t i) {
    const Vec<T> e = s_.labels(i) < Int(0) ? splat(T(1)) : load(s_.target + i);
    store_wide(s_.rows.e_target + i, e);
    for (size_t q = i; needs_distances_ && q < i + L && q < s_.n; ++q) {
      if (s_.label[q] >= 0) s_.rows.x_target[q] = double(s_.logit_of_target(q));
    }
    for (size_t q = i; q < i + L; q += D) gather_lost(q);
  }

  // Computes the rows that are out of range again, with k from their maximum. The other rows of the
  // vector get the same results as before.
  void recompute_from_maximum() {
    for (size_t i = 0; i < s_.n; i += L) {
      Int again[L], found = 0;
      for (size_t q = 0; q < L; ++q) {
        again[q] = s_.label[i + q] >= 0 && !s_.rows.is_in_range(i + q) ? -1 : 0;
        found |= again[q];
      }
      if (!found) continue;
      IntVec<T> mask;
      __builtin_memcpy(&mask, again, sizeof mask);
      const Vec<T> before = load(s_.origin + i), most = largest(i, s_.t.classes);
      guess(i, mask ? most : before);
      const size_t lanes = s_.n - i < L ? s_.n - i : L;
      size_t c = 0;
      for (; c + kClassesAtOnce <= s_.t.classes; c += kClassesAtOnce) {
        exps_of<kClassesAtOnce>(c, i, lanes);
      }
      for (; c < s_.t.classes; ++c) exps_of<1>(c, i, lanes);
      extract_targets(i);
    }
  }

  Segment<T> s_;
  const LogitScale<T> scale_;
  const bool needs_distances_;
};

}  // namespace XENTROPY_TIER
}  // namespace xentropy
