// softmax, log_softmax, log-sum-exp and entropy of one row, from its maximum m:
//
//     L = -log p_m = log1p(others / e_m)
//     p_c = e_c / total,  log p_c = (x_c - m) - L,  lse = m + L
//     entropy = sum_c p_c (m - x_c) + L     (no term is negative: nothing cancels)
//
// Cost: two reads (the second from cache), one exp per element (none is kept for the
// reductions), one write; log_softmax reads the row a third time.
#pragma once
#include "dense.h"
#include "stores.h"

namespace xentropy {
namespace XENTROPY_TIER {

template <class T>
void fill(T* out, size_t n, T value) {
  for (size_t i = 0; i < n; ++i) out[i] = value;
}

template <class T>
void store_softmax(const T* e, size_t classes, double total, T* out) {
  const double factor = 1 / total;
  RegularStores<T, false> stores;
  stores.begin_row(out, classes, {T(factor), T(__builtin_fma(-factor, total, 1) / total), 0});
  stores.advance(e, classes, e);
}

// log p_c = (x_c - m) - L; the difference is taken in two parts (two-sum).
template <class T>
void store_log_softmax(const T* x, size_t classes, T peak, double log1p_others, T* out) {
  constexpr size_t L = kLanes<T>;
  const Vec<T> m = splat(peak), shift = splat(T(log1p_others));
  const Vec<T> rest = splat(T(log1p_others - double(T(log1p_others))));
  for (size_t i = 0; i < classes; i += L) {
    const bool whole = i + L <= classes;
    const Vec<T> v = whole ? load(x + i) : load_first(x + i, classes - i, m);
    const Vec<T> d = v - m;
    const Vec<T> moved = d - v;
    Vec<T> lost = (v - (d - moved)) + (-m - moved);
    lost = lost == lost ? lost : Vec<T>{};  // d is -inf
    const Vec<T> y = (d - shift) + (lost - rest);
    if (whole) {
      store(out + i, y);
    } else {
      store_first(out + i, y, classes - i);
    }
  }
}

template <class T>
bool has_nan(const T* x, size_t n) {
  int found = 0;
  for (size_t i = 0; i < n; ++i) found |= x[i] != x[i];
  return found != 0;
}

// A row without a finite maximum: nan, but for its log-sum-exp, which is that maximum.
template <class T>
void undefined_softmax(Normal what, T peak, size_t classes, T* out, double* value) {
  if (what == Normal::kLogSumExp) {
    *value = double(peak);
  } else if (what == Normal::kEntropy) {
    *value = NAN;
  } else {
    fill(out, classes, T(NAN));
  }
}

// -sum_c t_c log t_c of probabilities, with 0 log 0 = 0. One library logarithm an element.
template <class T>
double target_entropy(const T* t, size_t classes) {
  double sum = 0;
  for (size_t c = 0; c < classes; ++c) {
    if (t[c] != 0) sum -= double(t[c]) * log(double(t[c]));
  }
  return sum;
}

template <class T>
void softmax(Normal what, const T* x, size_t classes, T* out, T* scratch, double* value) {
  if (what == Normal::kTargetEntropy) {
    *value = target_entropy(x, classes);
    return;
  }
  T* q = scratch + scratch_elements(classes) / 2;
  const T peak = max_of(x, classes);
  const size_t m = find(x, classes, peak);
  const RowSums s = exp_any_row<T, false>(x, classes, m < classes ? m : 0, 1,
                                          what != Normal::kLogSumExp, scratch);
  const double total = s.total();
  if (total != total) {
    return undefined_softmax(what, has_nan(x, classes) ? T(NAN) : peak, classes, out, value);
  }
  const double log1p_others = log1p(s.others / s.e_target);
  if (what == Normal::kLogSumExp) {
    *value = double(peak) + log1p_others;
  } else if (what == Normal::kEntropy) {
    __builtin_memcpy(q, scratch, classes * sizeof(T));
    for (size_t c = classes; c % kLanes<T> != 0; ++c) q[c] = 0;
    *value = sum_masses(x, q, classes, peak).distance / total + log1p_others;
  } else if (what == Normal::kLogSoftmax) {
    store_log_softmax(x, classes, peak, log1p_others, out);
  } else {
    scratch[m] = T(s.e_target);
    store_softmax(scratch, classes, total, out);
  }
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
