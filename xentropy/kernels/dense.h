// Rows whose every class has target mass: class probabilities, or class weights together
// with label smoothing.
//
// The target mass of each class, q_c = weight_c ((1 - smoothing) t_c + smoothing / C), is
// written to scratch. The most probable class m takes the part that the target has in
// rows.h: with it apart, both tails are exact for targets that are (almost) one-hot.
//
//     loss = sum_c q_c (lse - x_c) = Q log1p(others / e_m) + sum_c q_c (x_m - x_c)
//
// Cost: several passes over the row in cache (masses, maximum, exps, sums, gradient), one
// exp per element; 12 bytes of memory traffic an element in float32 with probabilities
// (logits, target, gradient).
#pragma once
#include "peak.h"
#include "stores.h"

namespace xentropy {
namespace XENTROPY_TIER {

// q[c] for all classes of row r; zeros up to a whole vector.
template <class T>
void target_mass(const Terms& t, const Block<T>& b, size_t r, T* q) {
  const size_t C = t.classes;
  const double uniform = t.label_smoothing / double(C), hard = 1 - t.label_smoothing;
  const T* p = b.probabilities ? b.probabilities + ptrdiff_t(r) * b.probabilities_stride : nullptr;
  for (size_t c = 0; c < C; ++c) {
    const double mass = p ? hard * double(p[c]) + uniform : uniform;
    q[c] = T(b.weight ? b.weight[c] * mass : mass);
  }
  for (size_t c = C; c % kLanes<T> != 0; ++c) q[c] = 0;
  if (p) return;
  const size_t y = size_t(b.labels[r]);
  q[y] = T((b.weight ? b.weight[y] : 1) * (hard + uniform));
}

template <class T>
Settled settle_dense(const Terms& t, double q_m, const MassSums& q, double repeat, double upstream,
                     const RowSums& s) {
  const double mass = q.others + q_m;
  const RowLogs logs = row_logs<T>(s);
  double loss = t.unit * (mass * logs.negative_log_p + q.distance * t.logit_scale);
  double shift = 0;
  if (t.z_loss != 0) {
    const double lse = s.origin + logs.above_origin;
    loss += t.z_loss * lse * lse;
    shift = 2 * t.z_loss * lse;
  }
  const double rest = t.unit * q.others + shift;
  return {repeat * loss, upstream * repeat * t.logit_scale, t.unit * mass + shift,
          rest * s.e_target - t.unit * q_m * s.others, t.unit};
}

// gradient_c = e_c * factor - q_c * bias
template <class T>
void store_dense(const T* e, const T* q, size_t classes, Finish<T> f, T* out) {
  constexpr size_t L = kLanes<T>;
  const Vec<T> minus_bias = splat(-f.bias);
  const Finisher<T, false> finish(f);
  for (size_t i = 0; i < classes; i += L) {
    const Vec<T> v = fma(load(q + i), minus_bias, finish(load(e + i)));
    if (i + L <= classes) {
      store(out + i, v);
    } else {
      store_first(out + i, v, classes - i);
    }
  }
}

// q: the scratch row of the masses, e: of the exps; chunk: one chunk of scratch.
template <class T>
void dense_row(const Terms& t, const Block<T>& b, size_t r, T* q, T* e, T* chunk) {
  const size_t C = t.classes;
  const T* x = b.logits + ptrdiff_t(r) * b.logits_stride;
  target_mass(t, b, r, q);
  const T peak = max_of(x, C);
  const size_t found = find(x, C, peak), m = found < C ? found : 0;
  const double q_m = double(q[m]);
  q[m] = 0;
  const RowSums s = exp_any_row<T, false>(x, C, m, peak, t.logit_scale, e, chunk);
  const Settled settled =
      settle_dense<T>(t, q_m, sum_masses(x, q, C, peak), repeat_of(b, r), upstream_of(b, r), s);
  b.loss[r] = settled.loss;
  if (b.gradient == nullptr) return;
  const Finish<T> finish = finish_row(t, settled, s, m, q, e);
  store_dense(e, q, C, finish, b.gradient + ptrdiff_t(r) * b.gradient_stride);
}

template <class T>
void dense(const Terms& t, const Block<T>& b, T* scratch, bool) {
  T* q = scratch + kScratchChunk;
  T* e = b.gradient ? q + scratch_row(t.classes) : nullptr;
  for (size_t r = 0; r < b.rows; ++r) {
    if (b.labels[r] != kIgnored) {
      dense_row(t, b, r, q, e, scratch);
      continue;
    }
    b.loss[r] = 0;
    if (b.gradient == nullptr) continue;
    __builtin_memset(b.gradient + ptrdiff_t(r) * b.gradient_stride, 0, t.classes * sizeof(T));
  }
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
