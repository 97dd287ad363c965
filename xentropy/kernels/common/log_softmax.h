// Log-probabilities and log-sum-exp of a row, from its maximum and the sum of its other exps.
#pragma once
#include "common/exp.h"

namespace xentropy {
namespace XENTROPY_TIER {

// Maps x_c to log p_c.
template <class T>
struct LogOf {
  Vec<T> peak = {}, log1p_tail = {};
  XENTROPY_INLINE_MEMBER Vec<T> operator()(Vec<T> x) const { return (x - peak) - log1p_tail; }
};

// lse = peak + log1p_tail.
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

// log-sum-exp of a row; of a row without a finite maximum, that maximum.
template <class T>
double log_sum_exp(const RowLog<T>& log, const T* x, size_t classes) {
  if (log.log1p_tail == log.log1p_tail) return double(log.peak) + log.log1p_tail;
  return has_nan(x, classes) ? NAN : double(log.peak);
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
