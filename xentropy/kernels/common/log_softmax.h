// From the maximum of a row, and the sum of its other exps, to log-probabilities and log-sum-exp.
#pragma once
#include "common/exp.h"

namespace xentropy {
namespace XENTROPY_TIER {

// log p_c from x_c.
template <class T>
struct LogOf {
  Vec<T> peak = {}, log1p_tail = {};
  XENTROPY_INLINE_MEMBER Vec<T> operator()(Vec<T> x) const { return (x - peak) - log1p_tail; }
};

// What the maximum of a row leaves to know.
template <class T>
struct RowLog {
  T peak;
  double log1p_tail;  // nan if the peak is not finite, or the row holds nan
};

template <class T>
bool has_nan(const T* x, size_t n) {
  int found = 0;
  for (size_t i = 0; i < n; ++i) found |= x[i] != x[i];
  return found != 0;
}

// Of a row without a finite maximum: that maximum.
template <class T>
double log_sum_exp(const RowLog<T>& log, const T* x, size_t classes) {
  if (log.log1p_tail == log.log1p_tail) return double(log.peak) + log.log1p_tail;
  return has_nan(x, classes) ? NAN : double(log.peak);
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
