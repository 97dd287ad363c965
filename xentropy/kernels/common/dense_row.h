// One row with dense targets, that is, a target mass for every class: class probabilities, or class
// weights together with label smoothing.
//
//     q_c = weight_c ((1 - smoothing) t_c + smoothing / C)
//     loss = sum_c q_c (lse - x_c) = Q log1p(tail_sum / e_m) + sum_c q_c (x_m - x_c)
//
// The most probable class m takes the place that the target has in rows/labels.h: e_m is not in
// tail_sum, so that targets that are (almost) one-hot lose no digits.
#pragma once
#include "common/peak.h"
#include "common/settle.h"

namespace xentropy {
namespace XENTROPY_TIER {

// The target masses q of one row. In the chunk of class m they are read from a copy with 0 at m.
template <class T>
struct Masses {
  const T* row;
  T* copy;
  size_t begin, end;  // the chunk of m
  double of_m;        // the mass of m

  Masses(const T* q, size_t classes, size_t m, T* chunk)
      : row(q), copy(chunk), begin(m / kChunk<T> * kChunk<T>) {
    end = begin + kChunk<T> < classes ? begin + kChunk<T> : classes;
    __builtin_memcpy(copy, q + begin, (end - begin) * sizeof(T));
    of_m = double(q[m]);
    copy[m - begin] = 0;
  }

  // The masses of the chunk at b.
  const T* chunk(size_t b) const { return b == begin ? copy : row + b; }
};

// q[c] = weight_c ((1 - smoothing) p_c + smoothing / C) for n classes; a null weight is 1, a null p
// 0.
template <class T>
void make_masses(const Terms& t, const double* weight, const T* p, size_t n, T* q) {
  const double uniform = t.label_smoothing / double(t.classes), hard = 1 - t.label_smoothing;
  if (p && weight) {
    for (size_t c = 0; c < n; ++c) q[c] = T(weight[c] * (hard * double(p[c]) + uniform));
  } else if (p) {
    for (size_t c = 0; c < n; ++c) q[c] = T(hard * double(p[c]) + uniform);
  } else {
    for (size_t c = 0; c < n; ++c) q[c] = T(weight[c] * uniform);
  }
}

// The mass of the class that the label names.
XENTROPY_INLINE double label_mass(const Terms& t, double weight) {
  return weight * (1 - t.label_smoothing + t.label_smoothing / double(t.classes));
}

// Maps exps and masses to the gradient.
template <class T>
struct DenseMap {
  GradientMap<T> of_exps;
  Vec<T> minus_bias;

  explicit DenseMap(const GradientFactors<T>& f)
      : of_exps(GradientFactors<T>{f.factor, f.rest, 0}), minus_bias(splat(-f.bias)) {}

  XENTROPY_INLINE_MEMBER Vec<T> operator()(Vec<T> e, Vec<T> q) const {
    return fma(q, minus_bias, of_exps(e));
  }
  // The first `lanes` elements; those beyond are arbitrary.
  XENTROPY_INLINE_MEMBER Vec<T> some(const T* e, const T* q, size_t lanes) const {
    const Vec<T> none = {};
    return (*this)(load_first(e, lanes, none), load_first(q, lanes, none));
  }
};

// out[i] = e[i] * factor - q[i] * bias for i < n. `streamed`: whole cache lines are stored
// non-temporally. `next` is the input to prefetch, and `more`, if any, another.
template <class T>
void store_dense(const T* e, const T* q, size_t n, GradientFactors<T> f, T* out, bool streamed,
                 const T* next, const T* more = nullptr) {
  constexpr size_t L = kLanes<T>;
  const DenseMap<T> map(f);
  const auto at = [&](size_t i) XENTROPY_INLINE_LAMBDA { return map(load(e + i), load(q + i)); };
  const auto store_some = [&](size_t i, size_t lanes) XENTROPY_INLINE_LAMBDA {
    store_first(out + i, map.some(e + i, q + i, lanes), lanes);
  };
  size_t i = 0;
  if (streamed) {
    const size_t past = reinterpret_cast<uintptr_t>(out) % kLineBytes / sizeof(T);
    size_t head = past ? kLine<T> - past : 0;
    if (head > n) head = n;
    for (; i < head; i += L) store_some(i, head - i < L ? head - i : L);
    for (i = head; i + kLine<T> <= n; i += kLine<T>) {
      prefetch_l2(next + i);
      if (more) prefetch_l2(more + i);
      for (size_t v = 0; v < kLine<T>; v += L) stream(out + i + v, at(i + v));
    }
  }
  for (; i + kLine<T> <= n; i += kLine<T>) {
    prefetch_write(out + i + (1 << 10) / sizeof(T));
    for (size_t v = 0; v < kLine<T>; v += L) store(out + i + v, at(i + v));
  }
  for (; i + L <= n; i += L) store(out + i, at(i));
  if (i < n) store_some(i, n - i);
}

// The sums of a row. The most probable class m has mass q_m, all other classes q_tail; distance =
// sum_c q_c (x_m - x_c), before logit_scale.
template <class T>
struct DenseSums {
  RowSums exps;
  size_t m;
  double q_m, q_tail, distance;
};

// RowSums from the sum of the exps without class m, and the exp and the logit of m.
template <class T>
XENTROPY_INLINE RowSums dense_row_sums(const Total<T>& tail, double e_m, T peak,
                                       double logit_scale) {
  const Sum sum = tail.value();
  RowSums s = {};
  s.tail_sum = sum.value;
  s.tail_lost = sum.lost;
  s.e_target = e_m;
  s.origin = double(peak) * logit_scale;
  return s;
}

// The sums of a row with masses q from its maximum, and its exps in e. Null e: the sums only.
template <class T>
DenseSums<T> dense_sums_from_maximum(const Terms& t, const T* x, const Masses<T>& masses,
                                     const Peak<T>& peak, T* e, T* chunk) {
  const size_t C = t.classes;
  MassAccumulator<T> sums;
  constexpr double kScales[] = {1, kLogitSumScale};  // the second where products overflow
  for (const double scale : kScales) {
    sums = {{}, {}, T(scale)};
    for_chunks<T>(0, C,
                  [&](size_t i, size_t n) { sums.chunk(x + i, masses.chunk(i), n, peak.value); });
    if (sums.distance() - sums.distance() == 0) break;
  }
  const RowSums exps =
      exps_from_maximum<T>({chunks_of(x), C, peak.at, t.logit_scale, false, e, chunk}, peak.value);
  return {exps, peak.at, masses.of_m, sums.total(), sums.distance()};
}

// Stores the loss of row r; returns the factors of its gradient and sets the entry of m in e.
template <class T>
GradientFactors<T> settle_dense_row(const Terms& t, const Block<T>& b, size_t r,
                                    const DenseSums<T>& s, const T* q, T* e) {
  const Settled settled = settle_dense<double>(
      t, s.q_m, s.q_tail, s.distance, sample_weight_of(b, r), upstream_of(b, r),
      row_logs<T>(s.exps), s.exps.tail_sum, s.exps.e_target, s.exps.origin);
  b.loss[r] = settled.loss;
  if (e == nullptr) return {0, 0, 0};
  return finish_row(t, settled, s.exps, s.m, q, e);
}

// Loss and gradient of row r with masses q, from its maximum. e is the scratch row of the exps;
// null: the loss only.
template <class T>
void dense_row(const Terms& t, const Block<T>& b, size_t r, const T* q, T* e, T* chunks) {
  const T* x = b.logits + ptrdiff_t(r) * b.logits_stride;
  const Peak<T> peak = peak_of(x, t.classes);
  const Masses<T> masses(q, t.classes, peak.at, chunks + kChunk<T>);
  const DenseSums<T> sums = dense_sums_from_maximum(t, x, masses, peak, e, chunks);
  const GradientFactors<T> finish = settle_dense_row(t, b, r, sums, q, e);
  if (e == nullptr) return;
  T* out = b.gradient + ptrdiff_t(r) * b.gradient_stride;
  const auto store_piece = [&](const T* piece, size_t begin, size_t end) {
    store_dense(e + begin, piece, end - begin, finish, out + begin, false, x);
  };
  store_piece(q, 0, masses.begin);
  store_piece(masses.copy, masses.begin, masses.end);
  store_piece(q + masses.end, masses.end, t.classes);
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
