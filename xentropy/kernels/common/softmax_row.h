// The maxima of two rows in one pass, and the exps of a row with what its softmax follows from.
#pragma once
#include "common/peak.h"

namespace xentropy {
namespace XENTROPY_TIER {

// The maxima of both rows, and whether all logits are ordinary: finite, and below 2^100 (float64:
// 2^996), so that no difference overflows.
template <class T>
struct PairPeaks {
  Peak<T> own;
  T other;
  bool ordinary;
};

// One pass over both rows, in blocks, as peak_of. A product that overflows is never undone by sums.
template <class T>
PairPeaks<T> peaks_of(const T* x, const T* y, size_t classes) {
  constexpr size_t L = kLanes<T>, kBlock = 4 * kChunk<T>;
  const Vec<T> none = splat(T(-INFINITY)), near_overflow = splat(T(0x1p28)), zero = {};
  Vec<T> sum[4] = {}, of_y[4] = {none, none, none, none};
  T best = T(-INFINITY);
  size_t from = 0;
  for (size_t b = 0; b < classes; b += kBlock) {
    const size_t end = classes - b < kBlock ? classes : b + kBlock;
    Vec<T> of_x[4] = {none, none, none, none};
    const auto add = [&](Vec<T> own, Vec<T> other, size_t q) XENTROPY_INLINE_LAMBDA {
      of_x[q] = max(of_x[q], own);
      of_y[q] = max(of_y[q], other);
      sum[q] = fma(own, near_overflow, fma(other, near_overflow, sum[q]));
    };
    size_t i = b;
    for (; i + 4 * L <= end; i += 4 * L) {
      for (size_t q = 0; q < 4; ++q) add(load(x + i + q * L), load(y + i + q * L), q);
    }
    for (; i < end; i += L) {
      const size_t n = end - i < L ? end - i : L;
      add(load_first(x + i, n, splat(x[b])), load_first(y + i, n, splat(y[b])), 0);
    }
    const Vec<T> m = max(max(of_x[0], of_x[1]), max(of_x[2], of_x[3]));
    if (!any(m > splat(best))) continue;
    best = max_lanes<T>(m);
    from = b;
  }
  const size_t left = classes - from < kBlock ? classes - from : kBlock;
  const Vec<T> m = max(max(of_y[0], of_y[1]), max(of_y[2], of_y[3]));
  const Vec<T> all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  return {{best, from + find(x + from, left, best)}, max_lanes<T>(m), !any(all - all != zero)};
}

// A softmax: e_c / total is the probability of class c.
template <class T>
struct SoftmaxRow {
  const T* x;
  T* e;
  T peak, largest = 0;             // the largest logit, and its exp
  double total = NAN, odds = NAN;  // odds: of all other classes against that one

  SoftmaxRow(const T* row, size_t classes, double scale, T peak_of_row, T* exps, T* chunk)
      : x(row), e(exps), peak(peak_of_row) {
    const RowArguments<T> r = {chunks_of(x), classes, classes, scale, false, e, chunk};
    if (peak - peak == 0) {
      with_exp_of(peak, scale, [&](const auto& exp) {
        largest = exp(splat(peak))[0];
        total = exp_row(r, exp, peak, false).tail_sum;
      });
    }
    double others = total - double(largest);
    if (others < kUnsure * total) {  // by their own sum, with all digits
      T* const at = e + find(x, classes, peak);
      *at = 0;
      others = flush_and_sum(e, classes, chunk).value;
      *at = largest;
      total = others + double(largest);
    }
    odds = others / double(largest);
    for (size_t c = 0; total != total && c < classes; ++c) e[c] = T(NAN);
  }

 private:
  static constexpr double kUnsure = 0.75;
};

}  // namespace XENTROPY_TIER
}  // namespace xentropy
