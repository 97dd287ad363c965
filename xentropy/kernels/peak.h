// Rows by their maximum: the exps of x - max(x), right for every finite x.
//
// Cost: one more read of the row than its maximum has cost, from cache. The row kernel falls
// back on it for rows whose range it could not guess; softmax and dense targets start from it.
#pragma once
#include "sums.h"

namespace xentropy {
namespace XENTROPY_TIER {

// The place of the first element equal to `value`; n if there is none (nan).
template <class T>
XENTROPY_INLINE size_t find(const T* x, size_t n, T value) {
  constexpr size_t kBlock = 64;
  for (size_t begin = 0; begin < n; begin += kBlock) {
    const size_t end = begin + kBlock < n ? begin + kBlock : n;
    int found = 0;
    for (size_t i = begin; i < end; ++i) found |= x[i] == value;
    if (!found) continue;
    for (size_t i = begin; i < end; ++i) {
      if (x[i] == value) return i;
    }
  }
  return n;
}

// The sums of exp(scale * (x - peak)) * 2^kTop. The exps go to `row`, with 0 at the target;
// if it is null the sums alone are wanted. `row` has no padding: its last chunk is made in
// `chunk`. It may be x itself.
template <class T, bool kSmooth, class S>
RowSums exp_from_peak(const S* x, size_t classes, size_t target, T peak, double scale, T* row,
                      T* chunk) {
  const PeakExp<T> exp{Shift<T>(-Exp<T>::kTop), LogitScale<T>(scale), splat(peak)};
  const double target_distance = (double(value_of(x[target])) - double(peak)) * scale;
  RowAccumulator<T> sums;
  for (size_t b = 0; b < classes; b += kChunk<T>) {
    const size_t n = classes - b < kChunk<T> ? classes - b : kChunk<T>;
    T* e = row && n == kChunk<T> ? row + b : chunk;
    sums.template chunk<kSmooth, false>(x, b, n, target, exp, peak, e);
    if (row && e == chunk) __builtin_memcpy(row + b, chunk, n * sizeof(T));
  }
  RowSums s;
  const Sum others = sums.others.value();
  s.others = others.value;
  s.others_lost = others.lost;
  s.e_target = sums.e_target;
  s.target_distance = target_distance;
  s.origin = double(peak) * scale;
  s.origin_distance = 0;
  s.differences = kSmooth ? sums.differences.value().value / kSmall * scale : 0;
  return s;
}

// The sums and exps of any row, from its maximum. A row without a finite maximum (all -inf,
// or one +inf or nan) has no softmax: all of it becomes nan.
template <class T, bool kSmooth, class S>
RowSums exp_any_row(const S* x, size_t classes, size_t target, T peak, double scale, T* row,
                    T* chunk) {
  if (peak - peak == 0) {
    const RowSums s = exp_from_peak<T, kSmooth>(x, classes, target, peak, scale, row, chunk);
    if (s.total() == s.total()) return s;
  }
  for (size_t i = 0; row && i < classes; ++i) row[i] = T(NAN);
  return {NAN, NAN, NAN, NAN, NAN, NAN, NAN};
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
