// The row kernel for dense targets: class probabilities, or class weights together with label
// smoothing. common/dense_row.h has the formulas.
//
// Cost: one exp per element; with probabilities 12 bytes of memory traffic per element in float32
// (logits, target, gradient). Rows are pipelined as in rows/labels.h, chunk by chunk (16 cache
// lines):
//
//   1. gradient of row r-P, e_c * factor - q_c * bias, from its exps in scratch and its masses
//      where they are, with non-temporal stores if `streamed`. P rows are a pack: a few short rows,
//      or a long one;
//   2. exps of this row, the largest logit so far and the sum of the others (rows/dense_sums.h);
//   3. the sum of the masses and that of the products q_c (x_m - x_c), where m is the most probable
//      class so far; when another takes its place, the products so far rise. The sums of short rows
//      are taken after their exps, in a second pass (rows/dense_pack.h);
//   4. after the last row of a pack losses and factors, in vectors of rows. A row out of range is
//      computed again from its maximum.
#pragma once
#include "common/line_buffer.h"
#include "rows/dense_pack.h"
#include "rows/dense_sums.h"

namespace xentropy {
namespace XENTROPY_TIER {

template <class T>
size_t dense_bytes(size_t classes, bool gradient) {
  return bytes_of<DenseWorkspace<T>>(classes, gradient);
}

// Writes the gradient of a row piece by piece, from its exps and masses. `streamed`: by
// non-temporal stores, and the lines between rows through a buffer, as StreamedStores does.
template <class T>
class DenseStores {
 public:
  explicit DenseStores(bool streams) : streamed(streams) {}

  // m: the class whose mass is not used.
  void begin_row(T* to, const T* masses, size_t n, size_t m, const GradientFactors<T>& f) {
    if (streamed) edge.continue_at(to);
    out = to;
    q = masses;
    classes = n;
    done = 0;
    factors = f;
    const size_t before = past_line(m);
    begin = m > before ? m - before : 0;
    end = line_end(m);
    __builtin_memcpy(line, q + begin, (end - begin) * sizeof(T));
    line[m - begin] = 0;
  }

  // Writes the classes up to `stop`, and on to the end of its cache line. `next` is the row to
  // prefetch.
  void advance(const T* e, size_t stop, const T* next) {
    if (done == classes) return;
    if (!edge.empty()) put_edge(e, classes < edge.room() ? classes : edge.room());
    if (past_line(stop)) stop = line_end(stop);
    if (stop > classes) stop = classes;
    const size_t last = streamed && stop == classes ? past_line(classes) : 0;
    if (done + last < stop) put_lines(e, stop - last, next);
    if (done == stop) return;
    edge.continue_at(out + done);
    put_edge(e, last);
  }

  void flush() { edge.flush(); }

 private:
  __attribute__((noinline)) void put_lines(const T* e, size_t stop, const T* next) {
    const auto within = [&](size_t c) { return c < done ? done : c > stop ? stop : c; };
    const size_t cut[] = {done, within(begin), within(end), stop};
    for (size_t i = 0; i < 3; ++i) {
      const size_t c = cut[i];
      if (c == cut[i + 1]) continue;
      store_dense(e + c, i == 1 ? line : q + c, cut[i + 1] - c, factors, out + c, streamed,
                  next + c + (8 << 10) / sizeof(T));
    }
    done = stop;
  }

  // Moves the next n elements, at most a line, into the buffer.
  __attribute__((noinline)) void put_edge(const T* e, size_t n) {
    constexpr size_t L = kLanes<T>;
    const DenseMap<T> map(factors);
    const T* masses = done >= begin && done < end ? line + (done - begin) : q + done;
    edge.append(n, [&](T* to) XENTROPY_INLINE_LAMBDA {
      for (size_t i = 0; i < n; i += L) {
        store(to + i, map.some(e + done + i, masses + i, n - i < L ? n - i : L));
      }
    });
    done += n;
  }

  // The elements of the cache line of class c before it.
  size_t past_line(size_t c) const {
    return reinterpret_cast<uintptr_t>(out + c) % kLineBytes / sizeof(T);
  }
  size_t line_end(size_t c) const {
    const size_t of_line = c - past_line(c) + kLine<T>;
    return of_line < classes ? of_line : classes;
  }

  const bool streamed;
  T* out = nullptr;
  const T* q = nullptr;
  size_t classes = 0, done = 0, begin = 0, end = 0;
  GradientFactors<T> factors = {0, 0, 0};
  T line[kLine<T>];  // masses of [begin, end), the cache line of the output with m in it; 0 at m
  LineBuffer<T> edge;
};

// Steps 2 and 3 for row r, row q of its pack. exps_at(i, n) returns where the exps of the n classes
// from i on go.
template <class T, class ExpsAt>
XENTROPY_INLINE DenseSums<T> dense_sums(const Terms& t, const Block<T>& b, size_t r, size_t q,
                                        const DenseWorkspace<T>& w, const ExpsAt& exps_at) {
  const T* x = b.logits + ptrdiff_t(r) * b.logits_stride;
  const DenseTarget<T> target = w.target(t, b, r, q);
  if (in_two_passes<T>(t)) {
    return sums_in_two_passes(t, x, q, target, w, exps_at);
  }
  DenseInFlight<T> row(target, x);
  for_chunks<T>(0, t.classes, [&](size_t i, size_t n) XENTROPY_INLINE_LAMBDA {
    T* e = exps_at(i, n);
    row.chunk(i, n, e, w.scratch());
  });
  return row.finish();
}

// Starts to store row r, row q of its pack; returns the mass of its label.
template <class T>
LabelMass<T> begin_stores(const Terms& t, const Block<T>& b, size_t r, size_t q,
                          const DenseWorkspace<T>& w, DenseStores<T>& stores) {
  const bool ignored = b.labels[r] == kIgnored;
  const DenseTarget<T> target = w.target(t, b, r, q);
  LabelMass<T> label = ignored ? LabelMass<T>() : target.label_mass_in_row();
  const T* masses = ignored ? w.pack.row(q) : target.row();
  label.swap();
  stores.begin_row(b.gradient + ptrdiff_t(r) * b.gradient_stride, masses, t.classes,
                   ignored ? 0 : w.m[q], w.pack.finish[q]);
  label.swap();
  return label;
}

template <class T>
void dense_rows(const Terms& t, const Block<T>& b, const DenseWorkspace<T>& w, bool streamed) {
  const size_t C = t.classes, P = w.pack.rows, behind = b.gradient ? P : 0;
  const bool whole_rows = w.loss_exps != w.pack.chunks;
  DenseStores<T> stores(streamed);
  for (size_t r = 0, q = 0; r < b.rows + behind; ++r) {
    const bool writes = b.gradient && r >= P, in_batch = r < b.rows;
    const T* x = b.logits + ptrdiff_t(in_batch ? r : b.rows - 1) * b.logits_stride;
    T* e = w.exps(q);
    LabelMass<T> label;
    if (writes) label = begin_stores(t, b, r - P, q, w, stores);
    const auto exps_at = [&](size_t i, size_t n) XENTROPY_INLINE_LAMBDA {
      label.swap();
      if (writes) stores.advance(e, i + n, x);
      label.swap();
      return whole_rows ? e + i : e;
    };
    if (in_batch && b.labels[r] != kIgnored) {
      w.put(q, dense_sums(t, b, r, q, w, exps_at));
    } else {
      exps_at(0, C);
      if (in_batch && b.gradient) __builtin_memset(e, 0, C * sizeof(T));
    }
    q = q + 1 == P ? 0 : q + 1;
    if (in_batch && (q == 0 || r + 1 == b.rows)) {
      const size_t n = q == 0 ? P : q;
      settle_dense_pack(t, b, r + 1 - n, n, w);
    }
  }
  stores.flush();
}

template <class T>
void dense(const Terms& t, const Block<T>& b, char* workspace, bool streamed) {
  Arena arena = {workspace, 0};
  DenseWorkspace<T> w(t.classes, b.gradient, arena);
  if (w.pack.rows > b.rows) w.pack.rows = b.rows;
  if (!b.probabilities) {
    make_masses(t, b.weight, static_cast<const T*>(nullptr), t.classes, w.masses);
  }
  dense_rows(t, b, w, streamed);
  if (streamed) stream_fence();
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
