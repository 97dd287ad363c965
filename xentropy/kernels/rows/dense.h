// The row kernel for dense targets: class probabilities, or class weights together with label
// smoothing. common/dense_row.h has the formulas.
//
// Cost: one exp per element; with probabilities 12 bytes of memory traffic per element in float32
// (logits, target, gradient). Rows are pipelined as in rows/labels.h, chunk by chunk (16 cache
// lines):
//
//   1. gradient of the row before, e_c * factor - q_c * bias, from its exps in scratch and its
//      masses where they are, with non-temporal stores if `streamed`;
//   2. exps of this row, the largest logit so far and the sum of the others (rows/dense_sums.h);
//   3. the sum of the masses and that of the products q_c (x_m - x_c), where m is the most probable
//      class so far; when another takes its place, the products so far rise;
//   4. at the end of a row its loss and factors. A row out of range is computed again from its
//      maximum.
#pragma once
#include "common/dense_row.h"
#include "common/workspace.h"
#include "rows/dense_sums.h"

namespace xentropy {
namespace XENTROPY_TIER {

template <class T>
struct DenseWorkspace {
  T* masses;  // with labels those of all rows, but for the label's; else if they are computed
  RowWorkspace<T> row;

  DenseWorkspace(size_t classes, bool gradient, Arena& arena)
      : masses(take_row<T>(arena, classes)), row(classes, gradient, arena) {}
};

template <class T>
size_t dense_bytes(size_t classes, bool gradient) {
  return bytes_of<DenseWorkspace<T>>(classes, gradient);
}

// Writes the gradient of a row piece by piece, from its exps and masses.
template <class T>
struct DenseStores {
  T* out = nullptr;
  const T* q = nullptr;
  size_t classes = 0, done = 0, begin = 0, end = 0;
  GradientFactors<T> finish = {0, 0, 0};
  T line[kLine<T>];  // masses of [begin, end), the cache line of the output with m in it; 0 at m

  void begin_row(T* to, const T* masses, size_t n, size_t m, GradientFactors<T> f) {
    out = to;
    q = masses;
    classes = n;
    done = 0;
    finish = f;
    const size_t before = past_line(m);
    begin = m > before ? m - before : 0;
    end = line_end(m);
    __builtin_memcpy(line, q + begin, (end - begin) * sizeof(T));
    line[m - begin] = 0;
  }

  // Writes the classes up to `stop`, and on to the end of its cache line. `next` is the row to
  // prefetch.
  void advance(const T* e, size_t stop, bool streamed, const T* next) {
    if (done == classes) return;
    if (past_line(stop)) stop = line_end(stop);
    if (stop > classes) stop = classes;
    const auto within = [&](size_t c) { return c < done ? done : c > stop ? stop : c; };
    const size_t cut[] = {done, within(begin), within(end), stop};
    for (size_t i = 0; i < 3; ++i) {
      const size_t c = cut[i];
      if (c == cut[i + 1]) continue;
      store_dense(e + c, i == 1 ? line : q + c, cut[i + 1] - c, finish, out + c, streamed,
                  next + c + (8 << 10) / sizeof(T));
    }
    done = stop;
  }

 private:
  // The elements of the cache line of class c before it.
  size_t past_line(size_t c) const {
    return reinterpret_cast<uintptr_t>(out + c) % kLineBytes / sizeof(T);
  }
  size_t line_end(size_t c) const {
    const size_t of_line = c - past_line(c) + kLine<T>;
    return of_line < classes ? of_line : classes;
  }
};

template <class T>
void dense_with_gradient(const Terms& t, const Block<T>& b, const DenseWorkspace<T>& w,
                         bool streamed) {
  const size_t C = t.classes;
  T *e = w.row.exps, *scratch = w.row.chunks + kChunk<T>;
  DenseStores<T> stores;
  LabelMass<T> label;
  for (size_t r = 0; r <= b.rows; ++r) {
    const T* x = b.logits + ptrdiff_t(r < b.rows ? r : r - 1) * b.logits_stride;
    const auto store_to = [&](size_t end) XENTROPY_INLINE_LAMBDA {
      label.swap();
      stores.advance(e, end, streamed, x);
      label.swap();
    };
    if (r == b.rows || b.labels[r] == kIgnored) {
      store_to(C);
      if (r == b.rows) break;
      b.loss[r] = 0;
      __builtin_memset(e, 0, C * sizeof(T));
      label = {};
      stores.begin_row(b.gradient + ptrdiff_t(r) * b.gradient_stride, e, C, 0, {0, 0, 0});
      continue;
    }
    DenseInFlight<T> row(t, b, r, w.masses);
    for_chunks<T>(0, C, [&](size_t i, size_t n) XENTROPY_INLINE_LAMBDA {
      store_to(i + n);
      row.chunk(i, n, e + i, scratch);
    });
    label = row.target.label_mass_in_row();
    label.swap();
    const T* q = row.target.row();
    const DenseSums<T> sums = row.finish(q, e, w.row.chunks);
    const GradientFactors<T> finish = settle_dense_row(t, b, r, sums, q, e);
    stores.begin_row(b.gradient + ptrdiff_t(r) * b.gradient_stride, q, C, sums.m, finish);
    label.swap();
  }
}

template <class T>
void dense_losses(const Terms& t, const Block<T>& b, const DenseWorkspace<T>& w) {
  T *e = w.row.chunks, *scratch = w.row.chunks + kChunk<T>;
  for (size_t r = 0; r < b.rows; ++r) {
    b.loss[r] = 0;
    if (b.labels[r] == kIgnored) continue;
    DenseInFlight<T> row(t, b, r, w.masses);
    for_chunks<T>(0, t.classes,
                  [&](size_t i, size_t n) XENTROPY_INLINE_LAMBDA { row.chunk(i, n, e, scratch); });
    LabelMass<T> label = row.target.label_mass_in_row();
    label.swap();
    settle_dense_row<T>(t, b, r, row.finish(row.target.row(), nullptr, w.row.chunks), nullptr,
                        nullptr);
    label.swap();
  }
}

template <class T>
void dense(const Terms& t, const Block<T>& b, char* workspace, bool streamed) {
  Arena arena = {workspace, 0};
  const DenseWorkspace<T> w(t.classes, b.gradient, arena);
  if (!b.probabilities) {
    make_masses(t, b.weight, static_cast<const T*>(nullptr), t.classes, w.masses);
  }
  if (b.gradient) {
    dense_with_gradient(t, b, w, streamed);
  } else {
    dense_losses(t, b, w);
  }
  if (streamed) stream_fence();
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
