// Rows by their maximum: the exps of x - max(x), right for every finite x.
//
// Cost: two reads of the row (the second from cache). The one-read row kernel falls back
// on it for rows whose range it could not guess; softmax and dense targets start from it.
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

// Fills e with exp(scale * (x - peak)) * 2^kTop and 0 at the target. `advance` 0 keeps
// only the last chunk of e: the sums alone are wanted.
template <class T, bool kSmooth>
RowSums exp_from_peak(const T* x, size_t classes, size_t target, T peak, double scale,
                      size_t advance, T* e) {
  const PeakExp<T> exp{Shift<T>(-Exp<T>::kTop), LogitScale<T>(scale), splat(peak)};
  RowAccumulator<T> row;
  for (size_t b = 0; b < classes; b += kChunk<T>) {
    const size_t n = classes - b < kChunk<T> ? classes - b : kChunk<T>;
    row.template chunk<kSmooth, false>(x, b, n, target, exp, peak, e + advance * b);
  }
  RowSums s;
  const Sum others = row.others.value();
  s.others = others.value;
  s.others_lost = others.lost;
  s.e_target = row.e_target;
  s.target_distance = (double(x[target]) - double(peak)) * scale;
  s.origin = double(peak) * scale;
  s.origin_distance = 0;
  s.differences = kSmooth ? row.differences.value().value / kSmall * scale : 0;
  return s;
}

// A row without a finite maximum (all -inf, or one +inf or nan) has no softmax.
template <class T>
RowSums undefined_row(size_t classes, size_t advance, T* e) {
  const size_t n = advance ? classes : (classes < kChunk<T> ? classes : kChunk<T>);
  for (size_t i = 0; i < n; ++i) e[i] = T(NAN);
  return {NAN, NAN, NAN, NAN, NAN, NAN, NAN};
}

// The sums and exps of any row, whatever it holds.
template <class T, bool kSmooth>
RowSums exp_any_row(const T* x, size_t classes, size_t target, double scale, size_t advance, T* e) {
  const T peak = max_of(x, classes);
  if (peak - peak != 0) return undefined_row(classes, advance, e);
  const RowSums s = exp_from_peak<T, kSmooth>(x, classes, target, peak, scale, advance, e);
  if (s.total() != s.total()) return undefined_row(classes, advance, e);  // a nan in x
  return s;
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
