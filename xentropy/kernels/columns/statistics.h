// Everything of short rows with a strided class axis: see common/statistics_lanes.h.
//
// Cost: each logit is read once from memory, and copied to scratch while the maximum is found. The
// rows that follow are prefetched class by class, some lines at a time, as each class is in a page
// of its own.
#pragma once
#include "common/statistics_lanes.h"
#include "common/workspace.h"

namespace xentropy {
namespace XENTROPY_TIER {

constexpr size_t kRowsAhead = 128;  // of the prefetches

// Prefetches line after line of kRowsAhead rows, class by class: one at every kLine / kLanes calls.
template <class T>
struct ColumnPrefetch {
  static constexpr size_t kLines = kRowsAhead / kLine<T>, kCalls = kLine<T> / kLanes<T>;
  const T* x = nullptr;
  size_t call = 0, line = 0;

  XENTROPY_INLINE_MEMBER void next(ptrdiff_t stride) {
    if (++call % kCalls) return;
    prefetch_l2(x + line * kLine<T>);
    if (++line < kLines) return;
    line = 0;
    x += stride;
  }
};

// The rows of a block for statistics_of_lanes.
template <class T>
struct ColumnRows {
  static constexpr size_t L = kLanes<T>;
  const StatisticsBlock<T>& b;
  T* scratch;  // a row
  ColumnPrefetch<T>* ahead;

  const T* of_class(size_t c) const { return b.x + ptrdiff_t(c) * b.x_class_stride; }
  T logit(size_t r, size_t c) const { return of_class(c)[r]; }
  const T* row(size_t r) const {
    for (size_t c = 0; c < b.classes; ++c) scratch[c] = logit(r, c);
    return scratch;
  }

  void rank(size_t r, const LaneBatch<T>& s, size_t i) const {
    if (r % kRowsAhead == 0) *ahead = {b.x + r + kRowsAhead};
    const size_t classes = b.classes;
    const ptrdiff_t stride = b.x_class_stride;
    T* columns = s.columns + i * classes;
    const auto rank_as = [&](const auto& logits) XENTROPY_INLINE_LAMBDA {
      ColumnPrefetch<T> prefetch = *ahead;  // copies, which no store can alias
      LaneRanks<T> ranks(s, i);
      for (size_t c = 0; c < classes; ++c) {
        const Vec<T> v = logits(c);
        store(columns + c * L, v);
        prefetch.next(stride);
        ranks.take_class(v);
      }
      ranks.put(s, i);
      *ahead = prefetch;
    };
    const T* x = b.x + r;
    if (count_rows(b, r, L) == L) {
      rank_as([=](size_t c) XENTROPY_INLINE_LAMBDA { return load(x + ptrdiff_t(c) * stride); });
    } else {
      rank_as([&](size_t c) { return counted_logits(r, c); });
    }
  }

 private:
  // The logits of class c; 0 of rows that are ignored, which are not read.
  Vec<T> counted_logits(size_t r, size_t c) const {
    T v[L] = {};
    for (size_t i = 0; i < L; ++i) {
      if (is_counted(b, r + i)) v[i] = logit(r + i, c);
    }
    return load(v);
  }
};

template <class T>
struct ColumnScratch {
  LaneBatch<T> batch;
  T* row;
  ColumnScratch(size_t classes, Arena& arena)
      : batch(classes, arena), row(take_row<T>(arena, classes)) {}
};

template <class T>
size_t statistics_columns_bytes(size_t classes) {
  return bytes_of<ColumnScratch<T>>(classes);
}

template <class T>
void statistics_columns(const StatisticsBlock<T>& b, char* workspace) {
  Arena arena = {workspace, 0};
  const ColumnScratch<T> scratch(b.classes, arena);
  ColumnPrefetch<T> ahead;
  with_scaled(b.logit_scale, [&](auto scaled) {
    statistics_of_lanes<scaled.value>(b, scratch.batch, ColumnRows<T>{b, scratch.row, &ahead});
  });
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
