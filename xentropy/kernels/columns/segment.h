// The state of one segment of adjacent rows in the column kernel, and the layout of its exps in
// scratch. A lane is a row.
#pragma once
#include "columns/settle.h"
#include "common/workspace.h"

namespace xentropy {
namespace XENTROPY_TIER {

// Rows per segment. With more rows the exps leave the cache; with fewer each page that is touched
// yields less data. Measured with C = 20 to 20,000.
constexpr size_t kSegmentRows = 128, kMinSegmentRows = 64;
constexpr size_t kSegmentBytes = size_t(1) << 20, kMaxSegmentBytes = size_t(1) << 22;
XENTROPY_INLINE size_t segment_rows(size_t classes, size_t size) {
  size_t n = kSegmentRows;
  while (n > kMinSegmentRows && n * classes * size > kSegmentBytes) n /= 2;
  while (n > 16 && n * classes * size > kMaxSegmentBytes) n /= 2;
  return n;
}

template <class T>
struct ColumnWorkspace {
  T *chunks, *row;  // for a row that is computed by the fallback
  T* exps;          // class by class; empty without a gradient

  ColumnWorkspace(size_t classes, bool gradient, Arena& arena)
      : chunks(take_chunks<T>(arena)),
        row(take_row<T>(arena, classes)),
        exps(take<T>(arena, gradient ? classes * segment_rows(classes, sizeof(T)) : 0)) {}
};

template <class T>
struct Segment {
  static constexpr size_t L = kLanes<T>, N = kSegmentRows;
  using Int = decltype(IntVec<T>{}[0] + 0);

  const Terms& t;
  const Block<T>& b;
  const size_t width;  // the largest number of rows
  const bool smooth;
  const ColumnWorkspace<T> workspace;
  size_t begin = 0, n = 0;               // the first row in the block, and the number of rows
  const T* x = nullptr;                  // logits of the first row
  bool differ = false, ignored = false;  // rows differ; the previous segment had ignored rows
  alignas(kLineBytes) Int label[N];
  alignas(kLineBytes) T anchor[N], lowest[N], highest[N], origin[N], target[N];  // see exps.h
  alignas(kLineBytes) double differences_lost[N];
  LaneRows<T, N> rows;

  Segment(const Terms& terms, const Block<T>& block, Arena& arena)
      : t(terms),
        b(block),
        width(segment_rows(terms.classes, sizeof(T))),
        smooth(terms.label_smoothing != 0),
        workspace(terms.classes, block.gradient, arena) {
    for (size_t i = 0; i < N; ++i) {
      rows.class_weight[i] = rows.sample_weight[i] = 1;
      rows.upstream[i] = block.upstream_all;
      rows.x_target[i] = 0;
    }
  }

  T* exps_of_class(size_t c) const { return workspace.exps + c * width; }

  // The labels of the rows [i, i + L).
  XENTROPY_INLINE_MEMBER IntVec<T> labels(size_t i) const {
    IntVec<T> v;
    __builtin_memcpy(&v, label + i, sizeof v);
    return v;
  }

  XENTROPY_INLINE_MEMBER Vec<T> logits(size_t c, size_t i) const {
    const T* at = x + ptrdiff_t(c) * b.logits_class_stride + i;
    return i + L <= n ? load(at) : load_first(at, n - i, Vec<T>{});
  }

  T logit_of_target(size_t i) const {
    return x[ptrdiff_t(label[i]) * b.logits_class_stride + ptrdiff_t(i)];
  }

  // The exp of row i's target in scratch; for an ignored row that of class 0.
  T& exp_of_target(size_t i) { return exps_of_class(size_t(label[i] < 0 ? 0 : label[i]))[i]; }

  // Starts the segment with rows [first, first + count) of the block. False if all are ignored.
  bool start(size_t first, size_t count) {
    begin = first;
    n = count;
    x = b.logits + first;
    const int64_t* y = b.labels + first;
    int64_t every = -1, some = 0;
    for (size_t i = 0; i < n; ++i) {
      label[i] = Int(y[i]);
      every &= y[i];
      some |= y[i];
    }
    for (size_t i = n; i < (n + L - 1) / L * L; ++i) label[i] = Int(kIgnored);
    if (every < 0) return false;
    for (size_t i = 0; b.weight && i < n; ++i) {
      rows.class_weight[i] = y[i] < 0 ? 0 : b.weight[y[i]];
    }
    load_weights(y, some < 0);
    return true;
  }

  void ignore(size_t i) {
    b.loss[begin + i] = 0;
    rows.factor[i] = rows.rest[i] = rows.bias[i] = 0;
  }

  // All rows are ignored: no logit is read, every gradient is +0.
  void blank() {
    for (size_t c = 0; b.gradient && c < t.classes; ++c) {
      __builtin_memset(exps_of_class(c), 0, n * sizeof(T));
    }
    for (size_t i = 0; i < n; ++i) ignore(i);
  }

 private:
  void load_weights(const int64_t* y, bool some_ignored) {
    differ = some_ignored || b.weight || b.sample_weight || b.upstream;
    if (!(some_ignored || ignored || b.sample_weight || b.upstream)) return;
    for (size_t i = 0; i < n; ++i) {
      const double counts = y[i] < 0 ? 0 : 1;
      rows.sample_weight[i] = b.sample_weight && counts ? b.sample_weight[begin + i] : counts;
      rows.upstream[i] = counts ? upstream_of(b, begin + i) : 0;
    }
    ignored = some_ignored;
  }
};

}  // namespace XENTROPY_TIER
}  // namespace xentropy
