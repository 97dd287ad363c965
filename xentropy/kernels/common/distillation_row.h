// One row of the divergence of two softmaxes and of its gradient in the logits of one of them:
// common/divergence.h has the formulas.
//
// Passes over the row, of which all but the first read the cache:
//
//   1. the maxima of both rows together; exps, into scratch, and their sums;
//   2. u and d, the terms of the loss, and a in the place of one of the exps;
//   3. gradient: (a_c - b_c sum a / sum b) * factor, with non-temporal stores if `streamed`.
#pragma once
#include "common/dense_row.h"
#include "common/divergence_pass.h"
#include "common/softmax_row.h"
#include "common/workspace.h"

namespace xentropy {
namespace XENTROPY_TIER {

template <class T>
struct DistillationWorkspace {
  T *chunks, *own, *other;

  DistillationWorkspace(size_t classes, Arena& arena)
      : chunks(take_chunks<T>(arena)),
        own(take_row<T>(arena, classes)),
        other(take_row<T>(arena, classes)) {}
};

// log((1 + a) / (1 + b)): both logarithms at once.
XENTROPY_INLINE double log_between(double a, double b) {
  VD v = {};
  v[0] = a;
  v[1] = b;
  v = log1p_of(v);
  return v[0] - v[1];
}

// Zeros if beta is not between.
template <class T>
MixtureOf<Vec<T>> mixture_of_row(const DistillationBlock<T>& b, const SoftmaxRow<T>& s,
                                 const SoftmaxRow<T>& t, size_t m) {
  if (!is_between(b.beta)) return MixtureOf<Vec<T>>();
  const double own = double(s.largest) / s.total, other = double(t.e[m]) / t.total;
  const auto of = mixture_of(b.beta, b.log_beta, own, other);
  return {splat(T(of.k)), splat(T(of.not_k)), splat(T(of.per_ratio)), splat(T(of.log_per_ratio))};
}

// Step 2. ordinary: the logits of both rows are. m: the class of the largest logit of s.
template <class T>
DivergenceSums<double> sums_of_row(const DistillationBlock<T>& b, const SoftmaxRow<T>& s,
                                   const SoftmaxRow<T>& t, size_t m, bool ordinary) {
  const LogRatios<T> all(b.logit_scale, b.teacher_scale, s.x[m], t.x[m], t.peak,
                         log_between(s.odds, t.odds));
  const Vec<T> of_s = splat(T(1 / s.total)), of_t = splat(T(1 / t.total));
  const SoftmaxPair<T> pair = {s.x, t.x, s.e, t.e, of_s, of_t, kLine<T>};
  const MixtureOf<Vec<T>> of_m = mixture_of_row(b, s, t, m);
  const auto use = [&](const auto& ratios) -> DivergenceSums<double> {
    const auto sums = divergence_sums(b.beta, pair, b.classes, ratios, of_m);
    return {sum_of(sums.loss).value, sum_of(sums.a).value, sum_of(sums.moved).value};
  };
  return ordinary ? with_few_ratios(all, b.logit_scale, b.teacher_scale, use) : use(all);
}

// Does x exclude a class (-inf) that y has?
template <class T>
bool excludes(const T* x, const T* y, size_t classes) {
  int found = 0;
  for (size_t c = 0; c < classes; ++c) found |= (x[c] == T(-INFINITY)) & (y[c] > T(-INFINITY));
  return found != 0;
}

// Row r, which counts. out: its gradient, or null.
template <class T>
void distillation_row(const DistillationBlock<T>& b, size_t r, T* out,
                      const DistillationWorkspace<T>& w, bool streamed) {
  const size_t C = b.classes;
  const T *x = b.x + ptrdiff_t(r) * b.x_stride, *y = b.teacher + ptrdiff_t(r) * b.teacher_stride;
  const PairPeaks<T> peaks = peaks_of(x, y, C);
  const SoftmaxRow<T> s(x, C, b.logit_scale, peaks.own.value, w.own, w.chunks);
  const SoftmaxRow<T> t(y, C, b.teacher_scale, peaks.other, w.other, w.chunks);
  const double total = s.total + t.total;
  if (total != total) {  // one of them has no softmax
    b.loss[r] = NAN;
    for (size_t c = 0; out && c < C; ++c) out[c] = T(NAN);
    return;
  }
  const bool forward = b.beta == 0;
  const auto sums = sums_of_row(b, s, t, peaks.own.at, peaks.ordinary);
  b.loss[r] = settled_loss(b.beta, sums);
  if (!peaks.ordinary && forward && excludes(x, y, C)) b.loss[r] = INFINITY;
  if (!peaks.ordinary && b.beta == 1 && excludes(y, x, C)) b.loss[r] = INFINITY;
  if (!out) return;
  const bool none = b.beta == 1 && b.loss[r] == INFINITY;
  const auto f = divergence_factors<T>(b.beta, sums, none ? NAN : b.factor[r] * b.logit_scale);
  const T *next = r + 1 < b.rows ? x + b.x_stride : x,
          *after = r + 1 < b.rows ? y + b.teacher_stride : y;
  store_dense(forward ? w.own : w.other, forward ? w.other : w.own, C,
              GradientFactors<T>{T(f.factor), T(f.rest), T(f.bias)}, out, streamed, next, after);
}

// A row that does not count.
template <class T>
void ignore_row(const DistillationBlock<T>& b, size_t r, T* out) {
  b.loss[r] = 0;
  if (out) __builtin_memset(out, 0, b.classes * sizeof(T));
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
