// The divergence of two softmaxes and its gradient in the logits of one of them, class axis
// contiguous: common/divergence.h has the formulas.
//
// Cost: two exps per element; with gradient 12 bytes of memory traffic per element in float32 (both
// logits, gradient). Two scratch rows. Passes over a row, of which all but the first read the
// cache:
//
//   1. maximum and exps of both rows, into scratch, and their sums;
//   2. chunk by chunk: u and d, the terms of the loss, and a in the place of one of the exps;
//   3. gradient: (a_c - b_c sum a / sum b) * factor, with non-temporal stores if `streamed`.
#pragma once
#include "common/dense_row.h"
#include "common/divergence.h"
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

// A softmax: e_c / total is the probability of class c.
template <class T>
struct SoftmaxRow {
  const T* x;
  T* e;
  Peak<T> peak;
  double total, log_peak;  // log_peak: -log of the largest probability

  SoftmaxRow(const T* row, size_t classes, double scale, T* exps, T* chunk)
      : x(row), e(exps), peak(peak_of(row, classes)) {
    const RowSums s =
        exps_from_maximum<T>({chunks_of(x), classes, peak.at, scale, false, e, chunk}, peak.value);
    e[peak.at] = T(s.e_target);
    total = s.total();
    log_peak = log1p_of(s.tail_sum / s.e_target);
  }
};

struct DivergenceSums {
  double loss, a, moved;
};

// Step 2. b replaces the exps of S or T that it is made of, and a the others. Terms: as below.
template <class T, class Terms>
DivergenceSums divergence_sums(const SoftmaxRow<T>& s, const SoftmaxRow<T>& t, size_t classes,
                               const LogRatios<T>& ratios, const Terms& terms, T* chunks) {
  constexpr size_t L = kLanes<T>;
  const Vec<T> of_s = splat(T(1 / s.total)), of_t = splat(T(1 / t.total)), none = {};
  Total<T> loss, a, moved;
  T *losses = chunks, *moves = chunks + kChunk<T>, *to = Terms::kKeepsOwn ? t.e : s.e;
  T* kept = Terms::kKeepsOwn ? s.e : t.e;
  for_chunks<T>(0, classes, [&](size_t begin, size_t n) {
    for (size_t i = 0; i < n; i += L) {
      const size_t c = begin + i, lanes = n - i < L ? n - i : L;
      const bool whole = lanes == L;
      const Vec<T> x = whole ? load(s.x + c) : load_first(s.x + c, lanes, none);
      const Vec<T> y = whole ? load(t.x + c) : load_first(t.x + c, lanes, none);
      const Vec<T> S = whole ? load(s.e + c) : load_first(s.e + c, lanes, none);
      const Vec<T> P = whole ? load(t.e + c) : load_first(t.e + c, lanes, none);
      const Vec<T> own = S * of_s, other = P * of_t;
      const DivergenceTerms<T> each = terms(own, other, ratios(x, y));
      store(losses + i, each.loss);
      store(to + c, each.a);
      store(kept + c, Terms::kKeepsOwn ? own : other);
      if (Terms::kKeepsOwn) store(moves + i, each.moved);
    }
    sum_chunk(losses, n, loss);
    sum_chunk(to + begin, n, a);
    if (Terms::kKeepsOwn) sum_chunk(moves, n, moved);
  });
  const Total<T>& off = Terms::kKeepsOwn ? moved : a;
  return {loss.value().value, a.value().value, off.value().value};
}

template <class T>
DivergenceSums sums_of_mode(const DistillationBlock<T>& b, const SoftmaxRow<T>& s,
                            const SoftmaxRow<T>& t, const LogRatios<T>& ratios, T* chunks) {
  const size_t C = b.classes;
  if (b.beta == 0) return divergence_sums(s, t, C, ratios, ForwardTerms<T>(), chunks);
  if (b.beta == 1) return divergence_sums(s, t, C, ratios, ReverseTerms<T>(), chunks);
  const size_t m = s.peak.at;
  const double own = double(s.e[m]) / s.total, other = double(t.e[m]) / t.total;
  const BetweenTerms<T> terms(b.beta, b.log_beta, own, other);
  return divergence_sums(s, t, C, ratios, terms, chunks);
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
                         const DivergenceSums& sums) {
  const bool ends = b.beta == 0 || b.beta == 1;
  const double curvature = ends ? 1 : b.beta * (1 - b.beta);
  const double loss = sums.loss - curvature * sums.moved * sums.moved / 2;
  if (b.beta == 0 && excludes(x, y, b.classes)) return INFINITY;
  if (b.beta == 1 && excludes(y, x, b.classes)) return INFINITY;
  return loss < 0 ? 0 : loss;
}

// Row r, which counts.
template <class T>
void distillation_row(const DistillationBlock<T>& b, size_t r, const DistillationWorkspace<T>& w,
                      bool streamed) {
  const size_t C = b.classes;
  const T *x = b.x + ptrdiff_t(r) * b.x_stride, *y = b.teacher + ptrdiff_t(r) * b.teacher_stride;
  const SoftmaxRow<T> s(x, C, b.logit_scale, w.own, w.chunks);
  const SoftmaxRow<T> t(y, C, b.teacher_scale, w.other, w.chunks);
  T* out = b.gradient ? b.gradient + ptrdiff_t(r) * b.gradient_stride : nullptr;
  const double total = s.total + t.total;
  if (total != total) {  // one of them has no softmax
    b.loss[r] = NAN;
    for (size_t c = 0; out && c < C; ++c) out[c] = T(NAN);
    return;
  }
  const size_t m = s.peak.at;
  const LogRatios<T> ratios(b.logit_scale, b.teacher_scale, x[m], y[m], t.peak.value,
                            s.log_peak - t.log_peak);
  const DivergenceSums sums = sums_of_mode(b, s, t, ratios, w.chunks);
  b.loss[r] = settle_divergence(b, x, y, sums);
  if (!out) return;
  const bool forward = b.beta == 0;
  double factor = b.factor[r] * b.logit_scale;
  factor *= forward ? 1 / (1 + sums.a) : b.beta == 1 ? 1 : 1 - b.beta;
  if (b.beta == 1 && b.loss[r] == INFINITY) factor = NAN;
  const double head = double(T(factor)), bias = factor * sums.a;
  const T* next = r + 1 < b.rows ? x + b.x_stride : x;
  store_dense(forward ? w.own : w.other, forward ? w.other : w.own, C,
              GradientFactors<T>{T(head), T(factor - head), T(bias)}, out, streamed, next);
}

template <class T>
void ignore_row(const DistillationBlock<T>& b, size_t r) {
  b.loss[r] = 0;
  T* out = b.gradient + ptrdiff_t(r) * b.gradient_stride;
  if (b.gradient) __builtin_memset(out, 0, b.classes * sizeof(T));
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
