// Exps of a row relative to its maximum, exp(scale * (x - max(x))): correct for every finite x.
//
// Cost: after the search for the maximum the row is read once more, from cache. This is the
// fallback of the row kernels for rows whose range they could not guess; the entropy of softmax
// starts with it.
#pragma once
#include "common/sums.h"

namespace xentropy {
namespace XENTROPY_TIER {

constexpr size_t kProbe = 64;  // the first logits of a row, from which k is guessed

// The exponent offset k for which the exp of the largest probed logit is about 2^kTop.
template <class T>
XENTROPY_INLINE double guess_offset(double probed, double scale) {
  double n = __builtin_rint(probed * scale * Exp<T>::kLog2E);
  if (!(n > -Exp<T>::kMaxOffset)) n = -Exp<T>::kMaxOffset;
  if (n > Exp<T>::kMaxOffset) n = Exp<T>::kMaxOffset;
  return n - Exp<T>::kTop;
}

// The index of the first element equal to `value`; 0 if there is none (nan).
template <class S, class T>
XENTROPY_INLINE size_t find(const S* x, size_t n, T value) {
  constexpr size_t L = kLanes<T>;
  const Vec<T> wanted = splat(value), none = splat(T(NAN));
  size_t i = 0;
  for (; i + 4 * L <= n; i += 4 * L) {
    const auto here = [&](size_t q)
                          XENTROPY_INLINE_LAMBDA { return load(x + i + q * L) == wanted; };
    if (any((here(0) | here(1)) | (here(2) | here(3)))) break;
  }
  for (; i < n; i += L) {
    const auto v = n - i < L ? load_first(x + i, n - i, none) : load(x + i);
    const size_t lane = first_true(v == wanted);
    if (lane < L) return i + lane;
  }
  return 0;
}

// The maximum of a row and its index. Both are arbitrary if the row has nan, as all of its results
// are nan.
template <class T>
struct Peak {
  T value;
  size_t at;
};

// One pass over the row, which keeps the chunk with the maximum; the index is then searched for in
// that chunk.
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

// scale * value - n ln 2, with ln 2 and the product in two parts: no digit is lost at 1e6.
XENTROPY_INLINE double logit_distance(double n, double value, double scale) {
  const double product = value * scale;
  if (product - product != 0) return product;  // -inf
  const double lost = __builtin_fma(value, scale, -product);
  return __builtin_fma(-n, Exp<double>::kLn2Head, product) +
         __builtin_fma(-n, Exp<double>::kLn2Rest, lost);
}

// The fields of RowSums that follow from the sums; the caller sets the distances and the origin.
template <class T>
XENTROPY_INLINE RowSums row_sums(const RowAccumulator<T>& sums, double scale, bool smooth) {
  RowSums s = {};
  const Sum tail_sum = sums.tail_sum.value();
  s.tail_sum = tail_sum.value;
  s.tail_lost = tail_sum.lost;
  s.e_target = sums.e_target;
  s.differences = smooth ? sums.differences.value().value / kLogitSumScale * scale : 0;
  return s;
}

// A row of logits that is read chunk by chunk as T: in place, or widened into a chunk of scratch.
// So the code below is compiled once for all storage types.
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

// The arguments of exps_from_maximum.
template <class T>
struct RowArguments {
  LogitChunks<T> x;
  size_t classes, target;
  double scale;
  bool smooth;  // also sum the differences (label smoothing)
  T* row;       // for the exps, 0 at the target; null: sums only; may be x
  T* chunk;     // scratch, kChunk elements: `row` has no padding for its last, partial chunk
};

// Sums and exps of one row. exp maps a vector of logits to their exps. `flush`: exps below
// kMinExactExp are set to 0.
template <class T, class Exp>
RowSums exp_row(const RowArguments<T>& r, const Exp& exp, T peak, bool flush) {
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

// Sets the exps in `row` below kMinExactExp to 0 and returns the sum of the rest.
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

// n = round(scale * peak / ln 2). `direct`: exp(scale * x) * 2^-n has full precision without
// subtracting the peak from x first.
struct ExponentEstimate {
  double n;
  bool direct;
};
template <class T>
XENTROPY_INLINE ExponentEstimate exponent_estimate(T peak, double scale) {
  const double n = __builtin_rint(double(peak) * scale * Exp<T>::kLog2E);
  return {n, __builtin_fabs(n) <= Exp<T>::kMaxOffset};
}

// Calls use(exp) with the functor for a row with this maximum; its largest result is about 2^kTop.
template <class T, class Use>
XENTROPY_INLINE auto with_exp_of(T peak, double scale, const Use& use) {
  const ExponentEstimate estimate = exponent_estimate(peak, scale);
  const LogitScale<T> factor(scale);
  if (!estimate.direct)
    return use(PeakExp<T>{ExponentOffset<T>(-Exp<T>::kTop), factor, splat(peak)});
  const ExponentOffset<T> k(estimate.n - Exp<T>::kTop, scale);
  return scale == 1 ? use(DirectExp<T, false>{k, factor}) : use(DirectExp<T, true>{k, factor});
}

// The sums and exps of any row, from its maximum. A row without a finite maximum (all -inf, or one
// +inf or nan) has no softmax: its sums and exps are nan.
template <class T>
RowSums exps_from_maximum(const RowArguments<T>& r, T peak) {
  if (peak - peak == 0) {
    T widened;
    const double x_target = double(*r.x.at(r.target, 1, &widened));  // `row` may be x
    RowSums s = with_exp_of(peak, r.scale, [&](const auto& exp) {
      RowSums first = exp_row(r, exp, peak, false);
      if (!needs_flush<T>(first.tail_sum)) return first;
      if (!r.row) return exp_row(r, exp, peak, true);
      const Sum tail_sum = flush_and_sum(r.row, r.classes, r.chunk);  // x may be overwritten by now
      first.tail_sum = tail_sum.value;
      first.tail_lost = tail_sum.lost;
      return first;
    });
    s.origin = double(peak) * r.scale;
    const ExponentEstimate estimate = exponent_estimate(peak, r.scale);
    if (estimate.direct) {
      s.target_distance = logit_distance(estimate.n, x_target, r.scale);
      s.origin_distance = logit_distance(estimate.n, double(peak), r.scale);
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
