// The divergence of two softmaxes and its gradient in the logits of one of them, class axis
// contiguous: common/divergence.h has the formulas.
//
// Cost: two exps per element; with gradient 12 bytes of memory traffic per element in float32 (both
// logits, gradient). Two scratch rows. Passes over a row, of which all but the first read the
// cache:
//
//   1. the maxima of both rows together; exps, into scratch, and their sums;
//   2. u and d, the terms of the loss, and a in the place of one of the exps;
//   3. gradient: (a_c - b_c sum a / sum b) * factor, with non-temporal stores if `streamed`.
#pragma once
#include "common/dense_row.h"
#include "common/divergence.h"
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

template <class T>
size_t distillation_bytes(size_t classes) {
  return bytes_of<DistillationWorkspace<T>>(classes);
}

// log((1 + a) / (1 + b)): both logarithms at once.
XENTROPY_INLINE double log_between(double a, double b) {
  VD v = {};
  v[0] = a;
  v[1] = b;
  v = log1p_of(v);
  return v[0] - v[1];
}

struct DivergenceSums {
  double loss, a, moved;
};

// Step 2. b replaces the exps of S or T that it is made of, and a the others.
template <class T, class Ratios, class Terms>
class DivergencePass {
  static constexpr size_t L = kLanes<T>, K = kLine<T>;
  static constexpr size_t n = kVectorBytes < 64 ? 1 : Terms::kTogether;  // vectors: registers

 public:
  DivergencePass(const SoftmaxRow<T>& s, const SoftmaxRow<T>& t, const Ratios& ratios,
                 const Terms& terms)
      : x_(s.x),
        y_(t.x),
        s_(s.e),
        t_(t.e),
        of_s_(splat(T(1 / s.total))),
        of_t_(splat(T(1 / t.total))),
        ratios_(ratios),
        terms_(terms) {}

  DivergenceSums sums(size_t classes) const {
    Sums all;
    const size_t end = classes / (4 * K) * (4 * K);
    for (size_t v = 0; v < K && end > 0; v += L) lanes(v, end, all);
    for (size_t c = end; c < classes; c += L) one(c, classes - c < L ? classes - c : L, all);
    return {all.loss.value().value, all.a.value().value,
            (Terms::kKeepsOwn ? all.moved : all.a).value().value};
  }

 private:
  struct Sums {
    Total<T> loss, a, moved;
  };

  // The vectors at v, v + K, ... below `end`, n at a time, which are added in fours. The ratios of
  // the next n are computed beside the terms of these: most operations of the former are additions,
  // of the latter multiplications.
  XENTROPY_INLINE_MEMBER void lanes(size_t v, size_t end, Sums& all) const {
    const DivergencePass p = *this;  // in registers: what is stored cannot change it
    LaneTotal<T> loss, a, moved;
    LogRatio<T> next[n];
    p.ratios_at(v, next);
    for (size_t c = v; c < end; c += 4 * K) {
      DivergenceTerms<T, 4> four;
      for (size_t q = 0; q < 4; q += n) {
        LogRatio<T> ratio[n];
        for (size_t i = 0; i < n; ++i) ratio[i] = next[i];
        const size_t at = c + q * K, after = at + n * K;
        p.ratios_at(after < end ? after : v, next);
        DivergenceTerms<T, n> part;
        p.terms_at(at, ratio, part);
        for (size_t i = 0; i < n; ++i) four.set(q + i, part, i);
      }
      loss.add((four.loss[0] + four.loss[1]) + (four.loss[2] + four.loss[3]));
      a.add((four.a[0] + four.a[1]) + (four.a[2] + four.a[3]));
      if (!Terms::kKeepsOwn) continue;
      moved.add((four.moved[0] + four.moved[1]) + (four.moved[2] + four.moved[3]));
    }
    all.loss.at[v / L] = loss;
    all.a.at[v / L] = a;
    all.moved.at[v / L] = moved;
  }

  XENTROPY_INLINE_MEMBER void ratios_at(size_t c, LogRatio<T> (&ratio)[n]) const {
    Vec<T> x[n], y[n];
    for (size_t q = 0; q < n; ++q) x[q] = load(x_ + c + q * K);
    for (size_t q = 0; q < n; ++q) y[q] = load(y_ + c + q * K);
    ratios_(x, y, ratio);
  }
  XENTROPY_INLINE_MEMBER void terms_at(size_t c, const LogRatio<T> (&ratio)[n],
                                       DivergenceTerms<T, n>& part) const {
    Vec<T> S[n], P[n];
    for (size_t q = 0; q < n; ++q) S[q] = load(s_ + c + q * K) * of_s_;
    for (size_t q = 0; q < n; ++q) P[q] = load(t_ + c + q * K) * of_t_;
    terms_(S, P, ratio, part);
    for (size_t q = 0; q < n; ++q) put(c + q * K, S[q], P[q], part.a[q]);
  }
  XENTROPY_INLINE_MEMBER void put(size_t c, Vec<T> S, Vec<T> P, Vec<T> a) const {
    store((Terms::kKeepsOwn ? t_ : s_) + c, a);
    store((Terms::kKeepsOwn ? s_ : t_) + c, Terms::kKeepsOwn ? S : P);
  }

  // The vector at c, of which `lanes` are classes.
  XENTROPY_INLINE_MEMBER void one(size_t c, size_t lanes, Sums& all) const {
    const auto from = [&](const T* p) XENTROPY_INLINE_LAMBDA {
      return lanes == L ? load(p + c) : load_first(p + c, lanes, Vec<T>{});
    };
    const Vec<T> x[] = {from(x_)}, y[] = {from(y_)}, S[] = {from(s_) * of_s_},
                 P[] = {from(t_) * of_t_};
    LogRatio<T> ratio[1];
    DivergenceTerms<T, 1> part;
    ratios_(x, y, ratio);
    terms_(S, P, ratio, part);
    put(c, S[0], P[0], part.a[0]);
    const size_t at = c % K / L;
    all.loss.at[at].add(part.loss[0]);
    all.a.at[at].add(part.a[0]);
    if (Terms::kKeepsOwn) all.moved.at[at].add(part.moved[0]);
  }

  const T *x_, *y_;
  T *s_, *t_;  // exps
  Vec<T> of_s_, of_t_;
  Ratios ratios_;
  Terms terms_;
};

template <class T, class Ratios, class Terms>
DivergenceSums divergence_sums(const SoftmaxRow<T>& s, const SoftmaxRow<T>& t, size_t classes,
                               const Ratios& ratios, const Terms& terms) {
  return DivergencePass<T, Ratios, Terms>(s, t, ratios, terms).sums(classes);
}

template <class T, class Ratios>
DivergenceSums sums_of_mode(const DistillationBlock<T>& b, const SoftmaxRow<T>& s,
                            const SoftmaxRow<T>& t, size_t m, const Ratios& ratios) {
  const size_t C = b.classes;
  if (b.beta == 0) return divergence_sums(s, t, C, ratios, ForwardTerms<T>());
  if (b.beta == 1) return divergence_sums(s, t, C, ratios, ReverseTerms<T>());
  const double own = double(s.largest) / s.total, other = double(t.e[m]) / t.total;
  const BetweenTerms<T> terms(b.beta, b.log_beta, own, other);
  return divergence_sums(s, t, C, ratios, terms);
}

// Does x exclude a class (-inf) that y has?
template <class T>
bool excludes(const T* x, const T* y, size_t classes) {
  int found = 0;
  for (size_t c = 0; c < classes; ++c) found |= (x[c] == T(-INFINITY)) & (y[c] > T(-INFINITY));
  return found != 0;
}

// The loss from its terms, in which d has an error that all classes share: `moved` is its
// exponential less 1. What it adds is of second order.
template <class T>
double settle_divergence(const DistillationBlock<T>& b, const T* x, const T* y,
                         const DivergenceSums& sums, bool ordinary) {
  const bool ends = b.beta == 0 || b.beta == 1;
  const double curvature = ends ? 1 : b.beta * (1 - b.beta);
  const double loss = sums.loss - curvature * sums.moved * sums.moved / 2;
  if (!ordinary && b.beta == 0 && excludes(x, y, b.classes)) return INFINITY;
  if (!ordinary && b.beta == 1 && excludes(y, x, b.classes)) return INFINITY;
  return loss < 0 ? 0 : loss;
}

template <class T>
DivergenceSums sums_of_row(const DistillationBlock<T>& b, const SoftmaxRow<T>& s,
                           const SoftmaxRow<T>& t, size_t m, const LogRatios<T>& ratios,
                           bool ordinary) {
  const double of_s = b.logit_scale, of_t = b.teacher_scale;
  if (!ordinary) return sums_of_mode(b, s, t, m, ratios);
  if (of_s == 1 && of_t == 1) {
    const FiniteLogRatios<T, false> few(ratios, of_s, of_t);
    if (few.serve()) return sums_of_mode(b, s, t, m, few);
  } else {
    const FiniteLogRatios<T, true> few(ratios, of_s, of_t);
    if (few.serve()) return sums_of_mode(b, s, t, m, few);
  }
  return sums_of_mode(b, s, t, m, ratios);
}

// Row r, which counts.
template <class T>
void distillation_row(const DistillationBlock<T>& b, size_t r, const DistillationWorkspace<T>& w,
                      bool streamed) {
  const size_t C = b.classes;
  const T *x = b.x + ptrdiff_t(r) * b.x_stride, *y = b.teacher + ptrdiff_t(r) * b.teacher_stride;
  const PairPeaks<T> peaks = peaks_of(x, y, C);
  const SoftmaxRow<T> s(x, C, b.logit_scale, peaks.own.value, w.own, w.chunks);
  const SoftmaxRow<T> t(y, C, b.teacher_scale, peaks.other, w.other, w.chunks);
  T* out = b.gradient ? b.gradient + ptrdiff_t(r) * b.gradient_stride : nullptr;
  const double total = s.total + t.total;
  if (total != total) {  // one of them has no softmax
    b.loss[r] = NAN;
    for (size_t c = 0; out && c < C; ++c) out[c] = T(NAN);
    return;
  }
  const size_t m = peaks.own.at;
  const LogRatios<T> ratios(b.logit_scale, b.teacher_scale, x[m], y[m], t.peak,
                            log_between(s.odds, t.odds));
  const DivergenceSums sums = sums_of_row(b, s, t, m, ratios, peaks.ordinary);
  b.loss[r] = settle_divergence(b, x, y, sums, peaks.ordinary);
  if (!out) return;
  const bool forward = b.beta == 0;
  double factor = b.factor[r] * b.logit_scale;
  factor *= forward ? 1 / (1 + sums.a) : b.beta == 1 ? 1 : 1 - b.beta;
  if (b.beta == 1 && b.loss[r] == INFINITY) factor = NAN;
  const double head = double(T(factor)), bias = factor * sums.a;
  const T *next = r + 1 < b.rows ? x + b.x_stride : x,
          *after = r + 1 < b.rows ? y + b.teacher_stride : y;
  store_dense(forward ? w.own : w.other, forward ? w.other : w.own, C,
              GradientFactors<T>{T(head), T(factor - head), T(bias)}, out, streamed, next, after);
}

template <class T>
void ignore_row(const DistillationBlock<T>& b, size_t r) {
  b.loss[r] = 0;
  if (!b.gradient) return;
  T* out = b.gradient + ptrdiff_t(r) * b.gradient_stride;
  __builtin_memset(out, 0, b.classes * sizeof(T));
}

template <class T>
void distillation(const DistillationBlock<T>& b, char* workspace, bool streamed) {
  Arena arena = {workspace, 0};
  const DistillationWorkspace<T> w(b.classes, arena);
  for (size_t r = 0; r < b.rows; ++r) {
    if (b.labels[r] == kIgnored) {
      ignore_row(b, r);
    } else {
      distillation_row(b, r, w, streamed);
    }
  }
  if (streamed) stream_fence();
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
