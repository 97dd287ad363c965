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

// kScaled: logit_scale is not 1. The exps are 2^-lower times those of other kernels.
template <class S, bool kScaled = false, class T = Arithmetic<S>>
DirectExp<T, kScaled> guessed_exp(const S* x, size_t classes, double scale = 1, int lower = 0) {
  const double k = guess_offset<T>(max_of(x, classes < kProbe ? classes : kProbe), scale) + lower;
  return {ExponentOffset<T>(k, scale), LogitScale<T>(scale)};
}

// S: type in memory. kScaled: as above.
template <class S, bool kScaled = false>
struct TailSums {
  typedef Arithmetic<S> T;

  const S* x;
  size_t classes, at = 0;  // at: the first class with the largest logit
  DirectExp<T, kScaled> exp;
  Total<T> tail_sum;
  double passed = 0, e_peak = 0;  // sum of the exps of previous maxima; exp of the current one
  T peak = T(-INFINITY);

  TailSums(const S* row, size_t n, double scale = 1, int lower = 0)
      : x(row), classes(n), exp(guessed_exp<S, kScaled>(row, n, scale, lower)) {}

  // Adds the classes [begin, begin + n); writes their exps to e, 0 for the maximum if it is here.
  // kPrefetch: prefetch the logits. Before the maximum changes: larger(new maximum, sum of the exps
  // of all chunks before this one). Returns a vector that holds the largest logit.
  template <bool kPrefetch, class Larger>
  XENTROPY_INLINE_MEMBER Vec<T> chunk(size_t begin, size_t n, T* e, const Larger& larger) {
    const Total<T> before = tail_sum;
    const Vec<T> none = splat(T(-INFINITY));
    Vec<T> most = none;
    add_vectors<T>(n, tail_sum, [&](size_t i, size_t lanes) XENTROPY_INLINE_LAMBDA {
      if (kPrefetch && i % kLine<S> == 0) prefetch_read(x + begin + i);
      const S* p = x + begin + i;
      const Vec<T> logits = lanes == kLanes<T> ? load(p) : load_first(p, lanes, none);
      const Vec<T> v = exp(logits);
      most = max(most, logits);
      store(e + i, v);
      return v;
    });
    if (!any(most > splat(peak))) return most;
    const T largest = max_lanes<T>(most);
    larger(largest, before);
    peak = largest;
    passed += e_peak;
    const size_t i = find(x + begin, n, peak);
    at = begin + i;
    e_peak = e[i];
    e[i] = 0;
    tail_sum = before;
    sum_chunk(e, n, tail_sum);
    return most;
  }
  template <bool kPrefetch>
  XENTROPY_INLINE_MEMBER void chunk(size_t begin, size_t n, T* e) {
    chunk<kPrefetch>(begin, n, e, [](T, const Total<T>&) {});
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
