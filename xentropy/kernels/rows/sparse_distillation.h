// Distillation from a teacher that gives the log-probabilities of some classes of a row, and that
// of all others together: the divergence has as many classes and one more.
//
// Cost: one exp per element; with gradient 8 bytes of memory traffic per element in float32. One
// scratch row. Steps for a row:
//
//   1. maximum and exps, into scratch, as for the softmax;
//   2. the exps of the given classes are taken out; the sum of the others is that of the rest (if
//      it is next to nothing, of exps from the rest's own maximum: once more step 1);
//   3. loss and gradient of the few classes in float64, by common/distillation_row.h;
//   4. gradient: the rest's divided among its classes as their exps are; then those of the given.
#pragma once
#include "common/distillation_row.h"

namespace xentropy {
namespace XENTROPY_TIER {

template <class T>
struct SparseWorkspace {
  T *chunks, *exps;
  double *x, *gradient;  // of the few classes
  DistillationWorkspace<double> few;

  SparseWorkspace(size_t classes, size_t given, Arena& arena)
      : chunks(take_chunks<T>(arena)),
        exps(take_row<T>(arena, classes)),
        x(take_row<double>(arena, given + 1)),
        gradient(take_row<double>(arena, given + 1)),
        few(given + 1, arena) {}
};

template <class T>
size_t sparse_distillation_bytes(size_t classes, size_t given) {
  return bytes_of<SparseWorkspace<T>>(classes, given);
}

XENTROPY_INLINE double log_of(double v) {
  if (v == 0) return -INFINITY;
  return v < 1 ? -log1p_of(1 / v - 1) : log1p_of(v - 1);
}

// The sum of a row of exps.
template <class T>
double sum_of_exps(T* exps, size_t classes, T* chunk) {
  Total<T> sum;
  for_chunks<T>(0, classes, [&](size_t begin, size_t n) {
    T* e = exps + begin;
    if (begin + n == classes) {  // whole vectors are added
      __builtin_memset(chunk, 0, kChunk<T> * sizeof(T));
      __builtin_memcpy(chunk, e, n * sizeof(T));
      e = chunk;
    }
    sum_chunk(e, n, sum);
  });
  return sum.value().value;
}

struct Rest {
  double sum, log;  // of its exps in the row; log: less the largest logit of all classes
};

// Step 2 where the exps of the rest underflow beside the largest, `peak`: they are made again from
// the rest's own maximum.
template <class T>
Rest far_rest(const SparseDistillationBlock<T>& b, const T* x, const int64_t* index, T peak,
              const SparseWorkspace<T>& w) {
  const size_t C = b.rows.classes;
  __builtin_memcpy(w.exps, x, C * sizeof(T));
  for (size_t i = 0; i < b.given; ++i) w.exps[index[i]] = T(-INFINITY);
  const Peak<T> top = peak_of(w.exps, C);
  const RowSums s = exps_from_maximum<T>(
      {chunks_of(w.exps), C, top.at, b.rows.logit_scale, false, w.exps, w.chunks}, top.value);
  const double total = s.total();
  if (total == total) {
    w.exps[top.at] = T(s.e_target);
    const double gap = double(top.value) - double(peak);
    return {total, gap * b.rows.logit_scale + log1p_of(s.tail_sum / s.e_target)};
  }
  __builtin_memset(w.exps, 0, C * sizeof(T));
  return {0, -INFINITY};
}

// Steps 1 and 2: the logits of the few classes, less the largest; returns the sum of the rest.
template <class T>
double few_logits(const SparseDistillationBlock<T>& b, const T* x, const int64_t* index,
                  const SparseWorkspace<T>& w) {
  constexpr double kLeast = sizeof(T) == 4 ? 0x1p-70 : 0x1p-600;  // 0 is far, also over the largest
  const size_t C = b.rows.classes;
  const SoftmaxRow<T> s(x, C, b.rows.logit_scale, max_of(x, C), w.exps, w.chunks);
  for (size_t i = 0; i < b.given; ++i) {
    const double gap = double(x[index[i]]) - double(s.peak);
    w.x[i] = s.total == s.total ? gap * b.rows.logit_scale : NAN;
  }
  const double largest = double(s.largest);
  for (size_t i = 0; i < b.given; ++i) w.exps[index[i]] = 0;
  const double sum = sum_of_exps(w.exps, C, w.chunks);
  const bool far = sum < kLeast && b.given < C;
  const Rest rest = far ? far_rest(b, x, index, s.peak, w) : Rest{sum, log_of(sum / largest)};
  w.x[b.given] = rest.log;
  return rest.sum;
}

// Row r, which counts. out: its gradient, or null.
template <class T>
void sparse_distillation_row(const SparseDistillationBlock<T>& b, size_t r, T* out,
                             const SparseWorkspace<T>& w, bool streamed) {
  const DistillationBlock<T>& all = b.rows;
  const T* x = all.x + ptrdiff_t(r) * all.x_stride;
  const int64_t* index = b.index + r * b.given;
  const double rest = few_logits(b, x, index, w), factor = all.factor[r] * all.logit_scale;
  DistillationBlock<double> few = {};
  few.rows = 1;
  few.classes = b.given + 1;
  few.beta = b.betas ? b.betas[2 * r] : all.beta;
  few.log_beta = b.betas ? b.betas[2 * r + 1] : all.log_beta;
  few.logit_scale = few.teacher_scale = 1;
  few.x = w.x;
  few.teacher = b.log_probs + r * few.classes;
  few.factor = &factor;
  few.loss = all.loss + r;
  distillation_row(few, 0, out ? w.gradient : nullptr, w.few, false);
  if (!out) return;
  const double of_rest = w.gradient[b.given] / (rest > 0 ? rest : INFINITY);  // nan stays nan
  const double head = double(T(of_rest));
  const T* next = r + 1 < all.rows ? x + all.x_stride : x;
  store_dense(w.exps, w.exps, all.classes, GradientFactors<T>{T(head), T(of_rest - head), T(0)},
              out, streamed, next);
  if (streamed) stream_fence();
  for (size_t i = 0; i < b.given; ++i) out[index[i]] = T(w.gradient[i]);
}

template <class T>
void sparse_distillation(const SparseDistillationBlock<T>& b, char* workspace, bool streamed) {
  Arena arena = {workspace, 0};
  const SparseWorkspace<T> w(b.rows.classes, b.given, arena);
  const DistillationBlock<T>& all = b.rows;
  for (size_t r = 0; r < all.rows; ++r) {
    T* out = all.gradient ? all.gradient + ptrdiff_t(r) * all.gradient_stride : nullptr;
    if (all.labels[r] == kIgnored) {
      ignore_row(all, r, out);
    } else {
      sparse_distillation_row(b, r, out, w, streamed);
    }
  }
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
