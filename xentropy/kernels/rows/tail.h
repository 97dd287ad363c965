// The exps of a row and the sum of its tail, all but the exp of the maximum, in one pass and
// without knowing the maximum beforehand.
//
// k is guessed as in rows/labels.h. If a chunk has a logit larger than all before, its exps are
// summed again without that of the new maximum, and the exp of the previous maximum joins the sum.
// For logits in random order this happens about log(number of chunks) times.
#pragma once
#include "common/peak.h"

namespace xentropy {
namespace XENTROPY_TIER {

// kScaled: scale may differ from 1.
template <class T, bool kScaled = false>
DirectExp<T, kScaled> guessed_exp(const T* x, size_t classes, double scale = 1) {
  const double k = guess_offset<T>(max_of(x, classes < kProbe ? classes : kProbe), scale);
  return {ExponentOffset<T>(k, scale), LogitScale<T>(scale)};
}

// exp_chunk that also returns a vector whose largest lane is the maximum.
template <bool kPrefetch, class T, class Exp, class Sums>
XENTROPY_INLINE Vec<T> exps_and_maximum(const T* x, size_t n, const Exp& exp, T* e, Sums& total) {
  const Vec<T> none = splat(T(-INFINITY));
  Vec<T> most = none;
  add_vectors<T>(n, total, [&](size_t i, size_t lanes) XENTROPY_INLINE_LAMBDA {
    if (kPrefetch && i % kLine<T> == 0) prefetch_read(x + i);
    const Vec<T> logits = lanes == kLanes<T> ? load(x + i) : load_first(x + i, lanes, none);
    const Vec<T> v = exp(logits);
    most = max(most, logits);
    store(e + i, v);
    return v;
  });
  return most;
}

template <class T>
struct TailSums {
  const T* x;
  size_t classes;
  DirectExp<T, false> exp;
  Total<T> tail_sum;
  double passed = 0, e_peak = 0;  // sum of the exps of previous maxima; exp of the current one
  T peak = T(-INFINITY);

  TailSums(const T* row, size_t n) : x(row), classes(n), exp(guessed_exp(row, n)) {}

  // Adds the classes [begin, begin + n); writes their exps to e. kPrefetch: prefetch the logits.
  template <bool kPrefetch>
  XENTROPY_INLINE_MEMBER void chunk(size_t begin, size_t n, T* e) {
    const Total<T> before = tail_sum;
    const Vec<T> most = exps_and_maximum<kPrefetch>(x + begin, n, exp, e, tail_sum);
    if (!any(most > splat(peak))) return;
    peak = max_lanes<T>(most);
    passed += e_peak;
    T* at = e + find(x + begin, n, peak);
    e_peak = *at;
    *at = 0;
    tail_sum = before;
    sum_chunk(e, n, tail_sum);
  }

  // Sets tail_sum and e_target. False if k was wrong: the row must be computed from its maximum.
  bool sums(RowSums* s) const {
    *s = {};
    s->tail_sum = tail_sum.value().value + passed;
    s->e_target = e_peak;
    return sums_in_range<T>(s->tail_sum, e_peak);
  }
};

}  // namespace XENTROPY_TIER
}  // namespace xentropy
