// Whether the exponent offset of a row suits its exps. D is double, or a vector of doubles with one
// row per lane.
#pragma once
#include "common/exp.h"

namespace xentropy {
namespace XENTROPY_TIER {

// Can exps below kMinExactExp change this sum? True for 0 as well: on some tiers such exps are 0,
// and the row has to take the same path on every tier.
template <class T, class D>
XENTROPY_INLINE auto needs_flush(D sum) {
  return sum < Exp<T>::kMinExactTail;
}

// False for nan.
template <class T, class D>
XENTROPY_INLINE auto total_in_range(D total) {
  return (total >= Exp<T>::kMinTotal) & (total < Exp<T>::kMaxTotal);
}

// The same for a row in two sums, its tail and one exp, where no subnormal exp may change the tail.
template <class T, class D>
XENTROPY_INLINE auto sums_in_range(D tail_sum, D exp) {
  return total_in_range<T>(tail_sum + exp) & (tail_sum >= Exp<T>::kMinExactTail);
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
