// The gradient of a row whose log-sum-exp is known: probabilities times an affine function of their
// logarithms (common/lse_rows.h has the formula), and single entries.
//
// Cost: one exp per element. Rows whose factors are not ordinary numbers, whose logits are far
// away, or that are balanced, are computed in float64, from distances.
#pragma once
#include "common/lse_rows.h"
#include "common/peak.h"
#include "common/workspace.h"

namespace xentropy {
namespace XENTROPY_TIER {

// Maps x_c to its gradient. kPlain: logit_scale is 1 and on_log is 0, which have the same bits in
// the other instance too.
template <class T, bool kPlain>
struct LseGradientMap {
  ExponentOffset<T> k;
  LogitScale<T> scale;
  Vec<T> a, b, centre, centre_rest;

  // spread(array) is the numbers of the rows of a vector of elements.
  template <class Spread>
  XENTROPY_INLINE_MEMBER LseGradientMap(const LseRows<T>& s, double logit_scale,
                                        const Spread& spread)
      : k(spread(s.anchor), spread(s.lowest), kHasScalef ? Vec<T>{} : spread(s.highest)),
        scale(logit_scale),
        a(spread(s.a)),
        b(kPlain ? Vec<T>{} : spread(s.b)),
        centre(kPlain ? Vec<T>{} : spread(s.centre)),
        centre_rest(kPlain ? Vec<T>{} : spread(s.centre_rest)) {}

  XENTROPY_INLINE_MEMBER Vec<T> operator()(Vec<T> x) const {
    Vec<T> rest = {};
    x = k.clamp(x);  // 0 * inf must not happen
    if (!kPlain) x = scaled<T>(x, scale, &rest);
    const Vec<T> e = exp_from<T, !kPlain>(x, rest, k.anchor, true);
    return kPlain ? e * a : e * fma((x - centre) - centre_rest + rest, b, a);
  }
};

struct LseNumbers {
  double lse, middle, on_p, on_log;
  bool balanced;
};

// The n <= kChunk<double> logits at x as float64, padded with -inf to a whole vector.
template <class S>
void widen_chunk(const S* x, size_t n, double* to) {
  for (size_t i = 0; i < n; ++i) to[i] = double(value_of(x[i]));
  for (size_t i = n; i % kLanes<double> != 0; ++i) to[i] = -INFINITY;
}

// The gradient of any row r, which is row i of s, but for the classes selected. chunks: scratch,
// two chunks. `out` may be the row itself.
template <class S, class T = Arithmetic<S>>
void lse_gradient_in_float64(const LseGradientBlock<S>& b, size_t r, const LseRows<T>& s, size_t i,
                             double* chunks, S* out) {
  const LseNumbers row = {b.of_rows.lse[r], s.middle[i], s.on_p[i], s.on_log[i],
                          s.kind[i] == kBalanced};
  const S* x = b.x + ptrdiff_t(r) * b.x_stride;
  double *v = chunks, *logs = chunks + kChunk<double>, on_peak = 0;
  const VD anchor = splat(row.lse / b.of_rows.logit_scale), above = splat(row.lse - row.middle),
           least = splat(-0x1p11), none = {};  // the exps of smaller logits are 0
  const PeakExp<double> exp = {ExponentOffset<double>(0), LogitScale<double>(b.of_rows.logit_scale),
                               anchor};
  const size_t m = row.balanced ? peak_of(x, b.classes).at : b.classes;
  Total<double> others;
  for_chunks<double>(0, b.classes, [&](size_t begin, size_t n) {
    widen_chunk(x + begin, n, v);
    if (m - begin < n) on_peak = exp(splat(v[m - begin]))[0] * row.on_p;
    for (size_t q = 0; q < n; q += kLanes<double>) {
      const VD logit = load(v + q), any_exp = exp(logit);
      const VD e = any_exp < Exp<double>::kMinExactExp ? none : any_exp;
      const VD times_log = e * (max(least, (logit - anchor) * b.of_rows.logit_scale) + above);
      store(logs + q, times_log);
      store(v + q, e * row.on_p + times_log * row.on_log);
    }
    if (m - begin < n) logs[m - begin] = 0;
    if (row.balanced) sum_chunk(logs, n, others);
    for (size_t q = 0; q < n; ++q) set_value(out + begin + q, T(v[q]));
  });
  if (row.balanced) {
    set_value(out + m, T(on_peak - row.on_log * others.value().value));
  }
}

// Overwrites the gradients at the classes selected of row r, which is at `out`.
template <class S>
void put_selected(const LseGradientBlock<S>& b, size_t r, S* out) {
  if (b.of_rows.lse[r] - b.of_rows.lse[r] != 0) return;
  for (size_t i = r * b.of_rows.entries; i < (r + 1) * b.of_rows.entries; ++i) {
    if (b.of_rows.at[i] != kIgnored)
      set_value(out + b.of_rows.at[i], Arithmetic<S>(b.of_rows.value[i]));
  }
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
