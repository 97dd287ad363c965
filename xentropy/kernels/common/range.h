// Was the power of two right by which the exps of a row were scaled? Numbers are double, or vectors
// of them: one row a lane.
#pragma once
#include "common/exp.h"

namespace xentropy {
namespace XENTROPY_TIER {

// May exps below kLeast show in this sum? 0 as well: it is what some tiers make of them, and such
// a row has to go the way that it goes on the others.
template <class T, class D>
XENTROPY_INLINE auto has_tiny(D sum) {
  return sum < Exp<T>::kTiny;
}

// Neither too small, nor too large, nor nan.
template <class T, class D>
XENTROPY_INLINE auto total_in_range(D total) {
  return (total >= Exp<T>::kMinTotal) & (total < Exp<T>::kMaxTotal);
}

// The same of a row whose tail is summed apart from one exp, where no subnormal exp may show.
template <class T, class D>
XENTROPY_INLINE auto sums_in_range(D tail_sum, D exp) {
  return total_in_range<T>(tail_sum + exp) & (tail_sum >= Exp<T>::kTiny);
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
