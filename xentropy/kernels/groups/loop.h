// Code common to the group kernels: the loop over the groups of a block, and exps with a k per row.
#pragma once
#include "groups/scratch.h"
#include "groups/writers.h"

namespace xentropy {
namespace XENTROPY_TIER {

// Prefetches the input of the next group: 4 KB ahead into L2, and the current position into L1.
template <class T>
XENTROPY_INLINE void prefetch_group(const T* next) {
  prefetch_l2(next + (4 << 10) / sizeof(T));
  prefetch_l1(next);
}

// The exps of a group with a k per row. `next` is the input of the next group. kScaled: logit_scale
// is not 1.
template <class T, bool kScaled>
void exp_rows(const T* x, size_t classes, double logit_scale, const T* index, const T* next,
              const GroupRows<T>& rows) {
  const GroupRows<T> g = rows;
  constexpr size_t L = kLanes<T>;
  const AnchoredExp<T, kScaled> exp(logit_scale);
  for (size_t q = 0; q < g.padded; q += L) {
    const Vec<T> anchors = load(g.anchor + q);
    const size_t begin = q * classes;
    for (size_t i = 0; i < L * classes; i += L) {
      if (i % kLine<T> == 0) prefetch_group(next + begin + i);
      const Vec<T> anchor = permute(anchors, (IntVec<T>)load(index + i));
      store(g.exps + begin + i, exp(load(x + begin + i), anchor));
    }
  }
}

// Appends zeros to the rows of a copy.
template <class T>
void pad_group(size_t classes, const GroupRows<T>& g, T* copy) {
  const size_t n = g.rows * classes, all = g.padded * classes + kGroupPadding;
  __builtin_memset(copy + n, 0, (all - n) * sizeof(T));
}

// Copies the rows of a group, for reads that run past the end of the last row; ignored rows are not
// read but set to zeros. Null labels: no row is ignored.
template <class T>
const T* padded_copy(const T* x, const int64_t* labels, size_t classes, const GroupRows<T>& g,
                     T* copy) {
  pad_group(classes, g, copy);
  const auto counts = [=](size_t q) { return labels == nullptr || labels[q] != kIgnored; };
  for (size_t q = 0, end; q < g.rows; q = end) {
    for (end = q + 1; end < g.rows && counts(end) == counts(q); ++end) {
    }
    const size_t begin = q * classes, bytes = (end - q) * classes * sizeof(T);
    if (counts(q)) {
      __builtin_memcpy(copy + begin, x + begin, bytes);
    } else {
      __builtin_memset(copy + begin, 0, bytes);
    }
  }
  for (size_t q = g.rows; q < g.padded; ++q) g.target[q] = 0;
  return copy;
}

// Whether none of these n rows is ignored.
XENTROPY_INLINE bool no_row_ignored(const int64_t* labels, size_t n) {
  int64_t all = 0;
  for (size_t r = 0; labels && r < n; ++r) all |= labels[r];
  return all >= 0;
}

// The rows [first, first + g.rows) of a block. x: where to read them, in place or, where reads past
// their end are not allowed, in a copy. `next`: the input of the next group.
template <class T>
struct Group {
  size_t first;
  const T *x, *next;
  bool last, copied;
};

// Calls each(Group<T>) for all groups of `rows` adjacent rows at x. Null labels: no row is ignored.
template <class T, class Each>
XENTROPY_INLINE void for_groups(const T* x, const int64_t* labels, size_t rows, size_t classes,
                                GroupScratch<T>& s, const Each& each) {
  GroupRows<T>& g = s.g;
  const size_t capacity = group_rows(classes);
  for (size_t first = 0; first < rows; first += capacity) {
    const size_t left = rows - first;
    const bool last = left <= capacity;
    g.rows = last ? left : capacity;
    g.padded = (g.rows + kRowMultiple - 1) / kRowMultiple * kRowMultiple;
    const T *at = x + first * classes, *next = at + g.rows * classes;
    const int64_t* own = labels ? labels + first : nullptr;
    // Reads past the end are shorter than a cache line. They touch at most kRowMultiple more rows,
    // if the block has as many.
    g.none_ignored =
        no_row_ignored(own, left < g.rows + kRowMultiple ? left : g.rows + kRowMultiple);
    const bool at_the_end = (left - g.rows) * classes < kLine<T>;
    const bool copied = at_the_end || !g.none_ignored;
    if (copied) at = padded_copy(at, own, classes, g, s.copy);
    each(Group<T>{first, at, next, last, copied});
  }
}

// Calls run(writer) with a writer of groups/writers.h to `out`; null: nothing is written.
template <class T, class Run>
XENTROPY_INLINE void with_writer(T* out, bool streamed, const Run& run) {
  if (streamed && out) {
    StreamedGroups<T> writer(out);
    run(writer);
    writer.flush();
    stream_fence();
  } else {
    RegularGroups<T> writer(out);
    run(writer);
  }
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
