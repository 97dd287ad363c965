// softmax, log_softmax, log-sum-exp and entropy of one row, from its maximum m:
//
//     L = -log p_m = log1p(others / e_m)
//     p_c = e_c / total,  log p_c = (x_c - m) - L,  lse = m + L
//     entropy = sum_c p_c (m - x_c) + L     (no term is negative: nothing cancels)
//
// Cost: one exp per element (entropy: two); the row is read for its maximum and again, from
// cache, for its exps. These go straight to the result of softmax, which is then scaled in
// place; the others keep one chunk of them.
#pragma once
#include "log1p.h"
#include "peak.h"
#include "stores.h"

namespace xentropy {
namespace XENTROPY_TIER {

template <class T>
bool has_nan(const T* x, size_t n) {
  int found = 0;
  for (size_t i = 0; i < n; ++i) found |= x[i] != x[i];
  return found != 0;
}

// e / total, in place.
template <class T>
void scale_softmax(T* e, size_t classes, double total) {
  constexpr size_t L = kLanes<T>;
  const double factor = double(T(1 / total));
  const T rest = T(__builtin_fma(-factor, total, 1) / total);
  const Finisher<T, false> finish({T(factor), rest, T(0)});
  size_t i = 0;
  for (; i + L <= classes; i += L) store(e + i, finish(load(e + i)));
  if (i == classes) return;
  store_first(e + i, finish(load_first(e + i, classes - i, Vec<T>{})), classes - i);
}

template <class T>
void store_log_softmax(const T* x, size_t classes, T peak, double log1p_others, T* out) {
  constexpr size_t L = kLanes<T>;
  const Vec<T> m = splat(peak), shift = splat(T(log1p_others));
  size_t i = 0;
  for (; i + L <= classes; i += L) store(out + i, (load(x + i) - m) - shift);
  if (i == classes) return;
  store_first(out + i, (load_first(x + i, classes - i, m) - m) - shift, classes - i);
}

// sum_c e_c (m - x_c), chunk by chunk.
template <class T>
double sum_distances(const T* x, size_t classes, T peak, T* chunk) {
  return with_exp_of(peak, 1, [&](const auto& exp) {
    const Flushed<T, decltype(exp)> flushed = {exp};
    MassAccumulator<T> sums;
    for_chunks<T>(0, classes, [&](size_t b, size_t n) {
      Total<T> unused;
      exp_chunk<false>(x + b, n, flushed, chunk, unused);
      sums.chunk(x + b, chunk, n, peak);
    });
    return sums.distance();
  });
}

// A row without a finite maximum: nan, but for its log-sum-exp, which is that maximum.
template <class T>
void undefined_softmax(Result what, const T* x, size_t classes, T peak, T* out, double* value) {
  if (what == Result::kLogSumExp) {
    *value = has_nan(x, classes) ? NAN : double(peak);
  } else if (what == Result::kEntropy) {
    *value = NAN;
  } else {
    for (size_t i = 0; i < classes; ++i) out[i] = T(NAN);
  }
}

template <class T>
void softmax(Result what, const T* x, size_t classes, T* out, T* scratch, double* value) {
  const Peak<T> top = peak_of(x, classes);
  const T peak = top.value;
  const size_t m = top.at;
  T* row = what == Result::kSoftmax ? out : nullptr;
  const RowSums s = exp_any_row<T, false>(x, classes, m, peak, 1, row, scratch);
  const double total = s.total();
  if (total != total) return undefined_softmax(what, x, classes, peak, out, value);
  const double log1p_others = log1p_of(s.others / s.e_target);
  if (what == Result::kSoftmax) {
    out[m] = T(s.e_target);
    scale_softmax(out, classes, total);
  } else if (what == Result::kLogSoftmax) {
    store_log_softmax(x, classes, peak, log1p_others, out);
  } else if (what == Result::kLogSumExp) {
    *value = double(peak) + log1p_others;
  } else {
    *value = sum_distances(x, classes, peak, scratch) / total + log1p_others;
  }
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
