// Rows by their maximum: the exps of scale * (x - max(x)), right for every finite x.
//
// Cost: one more read of the row than its maximum has cost, from cache. The row kernel falls
// back on it for rows whose range it could not guess; softmax and dense targets start from it.
#pragma once
#include "common/sums.h"

namespace xentropy {
namespace XENTROPY_TIER {

constexpr size_t kProbe = 64;  // logits from which k is guessed

// k such that the exp of the largest probed logit is about 2^kTop.
template <class T>
XENTROPY_INLINE double guess_shift(double probed, double scale) {
  double n = __builtin_rint(probed * scale * Exp<T>::kLog2E);
  if (!(n > -Exp<T>::kMaxShift)) n = -Exp<T>::kMaxShift;
  if (n > Exp<T>::kMaxShift) n = Exp<T>::kMaxShift;
  return n - Exp<T>::kTop;
}

// The place of the first element equal to `value`; 0 if there is none (nan).
template <class S, class T>
XENTROPY_INLINE size_t find(const S* x, size_t n, T value) {
  constexpr size_t L = kLanes<T>;
  const Vec<T> wanted = splat(value), none = splat(T(NAN));
  for (size_t i = 0; i < n; i += L) {
    const size_t end = n - i < L ? n - i : L;
    if (!any((end == L ? load(x + i) : load_first(x + i, end, none)) == wanted)) continue;
    for (size_t j = i; j < i + end; ++j) {
      if (value_of(x[j]) == value) return j;
    }
  }
  return 0;
}

// The largest of a row, and where it is; nan do not count.
template <class T>
struct Peak {
  T value;
  size_t at;
};

// One pass: it remembers the chunk that had the largest so far, and looks for it there.
template <class S, class T = Arithmetic<S>>
XENTROPY_INLINE Peak<T> peak_of(const S* x, size_t n) {
  T best = T(-INFINITY);
  size_t from = 0;
  for (size_t b = 0; b < n; b += kChunk<T>) {
    const Vec<T> m = max_vector(x + b, n - b < kChunk<T> ? n - b : kChunk<T>);
    if (!any(m > splat(best))) continue;
    best = max_lanes<T>(m);
    from = b;
  }
  return {best, from + find(x + from, n - from < kChunk<T> ? n - from : kChunk<T>, best)};
}

// scale * value - n ln 2, in two parts: nothing is lost at 1e6.
XENTROPY_INLINE double octaves_from(double n, double value, double scale) {
  const double product = value * scale;
  if (product - product != 0) return product;  // -inf
  const double lost = __builtin_fma(value, scale, -product);
  return __builtin_fma(-n, Exp<double>::kLn2Head, product) +
         __builtin_fma(-n, Exp<double>::kLn2Rest, lost);
}

// What the loss needs of the sums of a row; distances and origin are left to the caller.
template <class T, bool kSmooth>
RowSums row_sums(const RowAccumulator<T, kSmooth>& sums, double scale) {
  RowSums s = {};
  const Sum others = sums.others.value();
  s.others = others.value;
  s.others_lost = others.lost;
  s.e_target = sums.e_target;
  s.differences = kSmooth ? sums.differences.value().value / kSmall * scale : 0;
  return s;
}

// Sums and exps of one row: the exps go to `row`, with 0 at the target; if it is null the sums
// alone are wanted. `row` has no padding: its last chunk is made in `chunk`. It may be x itself.
template <class T, bool kSmooth, class S, class Exps>
RowSums exp_row(const S* x, size_t classes, size_t target, const Exps& exp, T peak, double scale,
                T* row, T* chunk) {
  const auto sums = sum_parts<T, kSmooth>(classes, [&](size_t begin, size_t end) {
    RowAccumulator<T, kSmooth> part;
    for_chunks<T>(begin, end, [&](size_t b, size_t n) {
      T* e = row && n == kChunk<T> ? row + b : chunk;
      part.template chunk<false>(x, b, n, target, exp, peak, e);
      if (row && e == chunk) __builtin_memcpy(row + b, chunk, n * sizeof(T));
    });
    return part;
  });
  return row_sums(sums, scale);
}

// Exps below kLeast as 0.
template <class T, class Exps>
struct Flushed {
  Exps exp;
  XENTROPY_INLINE_MEMBER Vec<T> operator()(Vec<T> x) const {
    const Vec<T> e = exp(x);
    return e < splat(Exp<T>::kLeast) ? Vec<T>{} : e;
  }
};

// exp_row once more: from the exps themselves, where x may be overwritten.
template <class T, bool kSmooth, class S, class Exps>
RowSums exp_row_flushed(const S* x, size_t classes, size_t target, const Exps& exp, T peak,
                        double scale, T* row, T* chunk, RowSums s) {
  const Flushed<T, Exps> flushed = {exp};
  if (row) {
    const auto stored = [](Vec<T> e) XENTROPY_INLINE_LAMBDA { return e; };
    const Flushed<T, decltype(stored)> again = {stored};
    const RowSums others = exp_row<T, false>(row, classes, classes, again, peak, scale, row, chunk);
    s.others = others.others;
    s.others_lost = others.others_lost;
    return s;
  }
  return exp_row<T, kSmooth>(x, classes, target, flushed, peak, scale, row, chunk);
}

// round(scale * peak / ln 2), and whether exp(scale * x) * 2^-n is exact enough without taking the
// peak from x first.
struct Octave {
  double n;
  bool direct;
};
template <class T>
XENTROPY_INLINE Octave octave_of(T peak, double scale) {
  const double n = __builtin_rint(double(peak) * scale * Exp<T>::kLog2E);
  return {n, __builtin_fabs(n) <= Exp<T>::kMaxShift};
}

// use(exp) with the exp that suits a row with this maximum; its largest result is about 2^kTop.
template <class T, class Use>
XENTROPY_INLINE auto with_exp_of(T peak, double scale, const Use& use) {
  const Octave octave = octave_of(peak, scale);
  const LogitScale<T> factor(scale);
  if (!octave.direct) return use(PeakExp<T>{Shift<T>(-Exp<T>::kTop), factor, splat(peak)});
  const Shift<T> k(octave.n - Exp<T>::kTop, scale);
  return scale == 1 ? use(DirectExp<T, false>{k, factor}) : use(DirectExp<T, true>{k, factor});
}

// The sums and exps of any row, from its maximum. A row without a finite maximum (all -inf,
// or one +inf or nan) has no softmax: all of it becomes nan.
template <class T, bool kSmooth, class S>
RowSums exp_any_row(const S* x, size_t classes, size_t target, T peak, double scale, T* row,
                    T* chunk) {
  if (peak - peak == 0) {
    const double value = double(value_of(x[target]));  // before `row`, which may be x, is written
    RowSums s = with_exp_of(peak, scale, [&](const auto& exp) {
      const RowSums first = exp_row<T, kSmooth>(x, classes, target, exp, peak, scale, row, chunk);
      if (!has_tiny<T>(first.others)) return first;
      return exp_row_flushed<T, kSmooth>(x, classes, target, exp, peak, scale, row, chunk, first);
    });
    s.origin = double(peak) * scale;
    const Octave octave = octave_of(peak, scale);
    if (octave.direct) {
      s.target_distance = octaves_from(octave.n, value, scale);
      s.origin_distance = octaves_from(octave.n, double(peak), scale);
    } else {
      s.target_distance = (value - double(peak)) * scale;
    }
    if (s.total() == s.total()) return s;
  }
  for (size_t i = 0; row && i < classes; ++i) row[i] = T(NAN);
  return {NAN, NAN, NAN, NAN, NAN, NAN, NAN};
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
