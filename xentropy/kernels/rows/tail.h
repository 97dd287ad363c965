// The exps of a row whose maximum is not known, in one pass, with that of the maximum apart.
//
// k is guessed as in rows.h. A chunk with a larger logit than all before is summed again without
// it, and the exp that was apart joins the sum. Among logits in no order that happens as often as
// the logarithm of the number of chunks.
#pragma once
#include "common/peak.h"

namespace xentropy {
namespace XENTROPY_TIER {

template <class T>
DirectExp<T, false> guessed_exp(const T* x, size_t classes) {
  const double k = guess_offset<T>(max_of(x, classes < kProbe ? classes : kProbe), 1);
  return {ExponentOffset<T>(k), LogitScale<T>(1)};
}

template <class T>
struct TailSums {
  const T* x;
  size_t classes;
  DirectExp<T, false> exp;
  Total<T> tail_sum;
  double passed = 0, e_peak = 0;  // exps that were apart before; the one that is
  T peak = T(-INFINITY);

  TailSums(const T* row, size_t n) : x(row), classes(n), exp(guessed_exp(row, n)) {}

  // The exps of classes [begin, begin + n), in e.
  template <bool kPrefetch>
  XENTROPY_INLINE_MEMBER void chunk(size_t begin, size_t n, T* e) {
    const Total<T> before = tail_sum;
    const Vec<T> none = splat(T(-INFINITY));
    Vec<T> most = none;
    add_vectors<T>(n, tail_sum, [&](size_t i, size_t lanes) XENTROPY_INLINE_LAMBDA {
      if (kPrefetch && i % kLine<T> == 0) prefetch_read(x + begin + i);
      const T* p = x + begin + i;
      const Vec<T> logits = lanes == kLanes<T> ? load(p) : load_first(p, lanes, none);
      const Vec<T> v = exp(logits);
      most = max(most, logits);
      store(e + i, v);
      return v;
    });
    if (!any(most > splat(peak))) return;
    peak = max_lanes<T>(most);
    passed += e_peak;
    T* at = e + find(x + begin, n, peak);
    e_peak = *at;
    *at = 0;
    tail_sum = before;
    sum_chunk(e, n, tail_sum);
  }

  // others and e_target; or false, if the row must be done from its maximum.
  bool sums(RowSums* s) const {
    *s = {};
    s->tail_sum = tail_sum.value().value + passed;
    s->e_target = e_peak;
    return sums_in_range<T>(s->tail_sum, e_peak);
  }
};

}  // namespace XENTROPY_TIER
}  // namespace xentropy
