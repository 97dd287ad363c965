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
XENTROPY_INLINE double guess_offset(double probed, double scale) {
  double n = __builtin_rint(probed * scale * Exp<T>::kLog2E);
  if (!(n > -Exp<T>::kMaxOffset)) n = -Exp<T>::kMaxOffset;
  if (n > Exp<T>::kMaxOffset) n = Exp<T>::kMaxOffset;
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
template <class T>
XENTROPY_INLINE RowSums row_sums(const RowAccumulator<T>& sums, double scale, bool smooth) {
  RowSums s = {};
  const Sum tail_sum = sums.tail_sum.value();
  s.tail_sum = tail_sum.value;
  s.tail_lost = tail_sum.lost;
  s.e_target = sums.e_target;
  s.differences = smooth ? sums.differences.value().value / kSmall * scale : 0;
  return s;
}

// A row of logits that is read chunk by chunk as T, so that what follows is compiled once for all
// types of storage: where it lies, or widened into a chunk of scratch.
template <class T>
struct LogitChunks {
  const void* row;
  const T* (*read)(const void* row, size_t begin, size_t n, T* scratch);

  const T* at(size_t begin, size_t n, T* scratch) const { return read(row, begin, n, scratch); }
};
template <class S, class T = Arithmetic<S>>
LogitChunks<T> chunks_of(const S* x) {
  return {x, [](const void* row, size_t begin, size_t n, T* scratch) -> const T* {
            const S* from = static_cast<const S*>(row) + begin;
            if constexpr (sizeof(S) == sizeof(T)) return from;
            for (size_t i = 0; i < n; ++i) scratch[i] = value_of(from[i]);
            return scratch;
          }};
}

// A row and what is asked of it.
template <class T>
struct RowRequest {
  LogitChunks<T> x;
  size_t classes, target;
  double scale;
  bool smooth;  // are the differences wanted?
  T* row;       // where the exps go, 0 at the target; null: the sums alone are wanted. x is allowed
  T* chunk;     // scratch of kScratchChunk: `row` has no padding, its last chunk is made there
};

// Sums and exps of one row. `flush`: exps below kLeast are 0.
template <class T, class Exp>
RowSums exp_row(const RowRequest<T>& r, const Exp& exp, T peak, bool flush) {
  const auto sums = sum_parts<T>(r.classes, r.smooth, [&](size_t begin, size_t end) {
    RowAccumulator<T> part;
    for_chunks<T>(begin, end, [&](size_t b, size_t n) {
      T* e = r.row && n == kChunk<T> ? r.row + b : r.chunk;
      const T* x = r.x.at(b, n, e);
      if (r.smooth) sum_differences(x, n, peak, part.differences);  // first: e may be x
      part.chunk(b, n, r.target, flush, e,
                 [&](T* to, Total<T>& total) { exp_chunk<false>(x, n, exp, to, total); });
      if (r.row && e == r.chunk) __builtin_memcpy(r.row + b, e, n * sizeof(T));
    });
    return part;
  });
  return row_sums(sums, r.scale, r.smooth);
}

// The sum of the exps that lie in `row` already, after those below kLeast have become 0.
template <class T>
Sum flush_and_sum(T* row, size_t classes, T* chunk) {
  const auto sums = sum_parts<T>(classes, false, [&](size_t begin, size_t end) {
    RowAccumulator<T> part;
    for_chunks<T>(begin, end, [&](size_t b, size_t n) {
      T* e = n == kChunk<T> ? row + b : chunk;
      part.chunk(b, n, classes, true, e, [&](T* to, Total<T>&) {
        if (to != chunk) return;
        __builtin_memset(chunk, 0, kChunk<T> * sizeof(T));
        __builtin_memcpy(chunk, row + b, n * sizeof(T));
      });
      if (e == chunk) __builtin_memcpy(row + b, e, n * sizeof(T));
    });
    return part;
  });
  return sums.tail_sum.value();
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
  return {n, __builtin_fabs(n) <= Exp<T>::kMaxOffset};
}

// use(exp) with the exp that suits a row with this maximum; its largest result is about 2^kTop.
template <class T, class Use>
XENTROPY_INLINE auto with_exp_of(T peak, double scale, const Use& use) {
  const Octave octave = octave_of(peak, scale);
  const LogitScale<T> factor(scale);
  if (!octave.direct) return use(PeakExp<T>{ExponentOffset<T>(-Exp<T>::kTop), factor, splat(peak)});
  const ExponentOffset<T> k(octave.n - Exp<T>::kTop, scale);
  return scale == 1 ? use(DirectExp<T, false>{k, factor}) : use(DirectExp<T, true>{k, factor});
}

// The sums and exps of any row, from its maximum. A row without a finite maximum (all -inf,
// or one +inf or nan) has no softmax: all of it becomes nan.
template <class T>
RowSums exp_any_row(const RowRequest<T>& r, T peak) {
  if (peak - peak == 0) {
    T widened;
    const double x_target = double(*r.x.at(r.target, 1, &widened));  // `row` may be x
    RowSums s = with_exp_of(peak, r.scale, [&](const auto& exp) {
      RowSums first = exp_row(r, exp, peak, false);
      if (!has_tiny<T>(first.tail_sum)) return first;
      if (!r.row) return exp_row(r, exp, peak, true);
      const Sum tail_sum = flush_and_sum(r.row, r.classes, r.chunk);  // x may be overwritten by now
      first.tail_sum = tail_sum.value;
      first.tail_lost = tail_sum.lost;
      return first;
    });
    s.origin = double(peak) * r.scale;
    const Octave octave = octave_of(peak, r.scale);
    if (octave.direct) {
      s.target_distance = octaves_from(octave.n, x_target, r.scale);
      s.origin_distance = octaves_from(octave.n, double(peak), r.scale);
    } else {
      s.target_distance = (x_target - double(peak)) * r.scale;
    }
    if (s.total() == s.total()) return s;
  }
  for (size_t i = 0; r.row && i < r.classes; ++i) r.row[i] = T(NAN);
  return {NAN, NAN, NAN, NAN, NAN, NAN, NAN};
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
