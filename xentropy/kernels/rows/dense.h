// The row kernel for dense targets: class probabilities, or class weights together with label
// smoothing. common/dense_row.h has the formulas.
//
// Cost: one exp per element; with probabilities 12 bytes of memory traffic per element in float32
// (logits, target, gradient). Passes over a row:
//
//   1. masses: the probabilities in place, if they are the masses; else computed into scratch;
//   2. maximum: step 5 of the previous row has prefetched the logits;
//   3. exps chunk by chunk, into scratch, and the sums of exps and masses;
//   4. loss and factors, as in rows/labels.h;
//   5. gradient: e_c * factor - q_c * bias, with non-temporal stores if `streamed`.
#pragma once
#include "common/dense_row.h"
#include "common/workspace.h"

namespace xentropy {
namespace XENTROPY_TIER {

template <class T>
struct DenseWorkspace {
  T* masses;  // unused if the probabilities are the masses
  RowWorkspace<T> row;

  DenseWorkspace(size_t classes, bool gradient, Arena& arena)
      : masses(take_row<T>(arena, classes)), row(classes, gradient, arena) {}
};

template <class T>
size_t dense_bytes(size_t classes, bool gradient) {
  return bytes_of<DenseWorkspace<T>>(classes, gradient);
}

template <class T>
void dense(const Terms& t, const Block<T>& b, char* workspace, bool streamed) {
  const size_t C = t.classes;
  Arena arena = {workspace, 0};
  const DenseWorkspace<T> w(C, b.gradient, arena);
  T *made = w.masses, *e = w.row.exps;
  if (!b.probabilities) make_masses<T>(t, b.weight, nullptr, made);
  for (size_t r = 0; r < b.rows; ++r) {
    if (b.labels[r] == kIgnored) {
      b.loss[r] = 0;
      if (e) __builtin_memset(b.gradient + ptrdiff_t(r) * b.gradient_stride, 0, C * sizeof(T));
      continue;
    }
    if (b.probabilities) {
      const T* p = b.probabilities + ptrdiff_t(r) * b.probabilities_stride;
      const bool as_they_are = !b.weight && t.label_smoothing == 0;
      if (!as_they_are) make_masses(t, b.weight, p, made);
      dense_row(t, b, r, as_they_are ? p : made, e, w.row.chunks, streamed);
    } else {
      const size_t y = size_t(b.labels[r]);
      const T uniform = made[y];
      made[y] = T(label_mass(t, b.weight[y]));
      dense_row(t, b, r, static_cast<const T*>(made), e, w.row.chunks, streamed);
      made[y] = uniform;
    }
  }
  if (streamed) stream_fence();
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
