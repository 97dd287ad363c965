// The gradient of short adjacent rows whose log-sum-exp is known: the bits of rows/lse_gradient.h.
//
// Cost: one exp per element, and a permutation for each number of its row: 3, or 6 with the entropy
// or a logit_scale. A group is computed in scratch, in the L1 cache, where the classes selected
// overwrite theirs, and copied to its place: memory is read once and written once.
#pragma once
#include "common/lse_gradient.h"
#include "groups/loop.h"

namespace xentropy {
namespace XENTROPY_TIER {

template <class T>
struct LseGroups {
  size_t capacity;  // rows of a group, a multiple of 16
  double* chunks;
  T* index;      // see index_rows
  T *copy, *to;  // of padded rows: logits that cannot be read in place, and the gradient
  LseRows<T> rows;

  LseGroups(size_t classes, Arena& arena)
      : capacity(group_rows(classes) < kLseRows ? group_rows(classes) : kLseRows),
        chunks(take_chunks<double>(arena)),
        index(take<T>(arena, kRowMultiple * classes + kGroupPadding)),
        copy(take<T>(arena, capacity * classes + kGroupPadding)),
        to(take<T>(arena, capacity * classes + kGroupPadding)),
        rows(arena) {}
};

// Where the n rows from `first` on can be read as whole vectors: in place, or in a copy, with zeros
// for rows that are filled and after the last one.
template <class T>
const T* readable_rows(const LseGradientBlock<T>& b, size_t first, size_t n, bool filled,
                       const LseGroups<T>& s) {
  const size_t C = b.classes, L = kLanes<T>, padded = (n + L - 1) / L * L;
  const T* x = b.x + first * C;
  if (padded == n && !filled) return x;
  __builtin_memset(s.copy, 0, padded * C * sizeof(T));
  for (size_t i = 0; i < n; ++i) {
    if (s.rows.kind[i] == kFilled) continue;
    __builtin_memcpy(s.copy + i * C, x + i * C, C * sizeof(T));
  }
  return s.copy;
}

// Maps the elements of n rows to s.to.
template <bool kPlain, class T>
__attribute__((noinline)) void map_group(const T* x, size_t n, size_t classes, double logit_scale,
                                         const LseGroups<T>& s) {
  constexpr size_t L = kLanes<T>;
  const LseRows<T> rows = s.rows;
  const T* index = s.index;
  for (size_t q = 0; q < n; q += L) {
    const T* from = x + q * classes;
    T* to = s.to + q * classes;
    for (size_t i = 0; i < L * classes; i += L) {
      const IntVec<T> which = (IntVec<T>)load(index + i);
      const LseGradientMap<T, kPlain> map(
          rows, logit_scale,
          [=](const T* p) XENTROPY_INLINE_LAMBDA { return permute(load(p + q), which); });
      prefetch_l2(from + i + (4 << 10) / sizeof(T));
      store(to + i, map(load(from + i)));
    }
  }
}

template <class T>
void lse_gradient_group(const LseGradientBlock<T>& b, size_t first, size_t n,
                        const LseGroups<T>& s) {
  const LseSummary any_of = settle_lse_rows(b, first, n, s.rows);
  const T* x = readable_rows(b, first, n, any_of.filled, s);
  if (b.of_rows.logit_scale == 1 && !any_of.on_log) {
    map_group<true>(x, n, b.classes, b.of_rows.logit_scale, s);
  } else {
    map_group<false>(x, n, b.classes, b.of_rows.logit_scale, s);
  }
  for (size_t i = 0; i < n; ++i) {
    T* out = s.to + i * b.classes;
    if (s.rows.kind[i] > kFilled) {
      lse_gradient_in_float64(b, first + i, s.rows, i, s.chunks, out);
    }
    put_selected(b, first + i, out);
  }
}

template <class T>
size_t lse_gradient_groups_bytes(size_t classes) {
  return bytes_of<LseGroups<T>>(classes);
}

template <class T>
void lse_gradient_groups(const LseGradientBlock<T>& b, char* workspace, bool streamed) {
  Arena arena = {workspace, 0};
  const LseGroups<T> s(b.classes, arena);
  index_rows(b.classes, s.index);
  with_writer(b.gradient, streamed, [&](auto& writer) {
    for (size_t first = 0; first < b.rows; first += s.capacity) {
      const size_t left = b.rows - first, n = left < s.capacity ? left : s.capacity;
      lse_gradient_group(b, first, n, s);
      writer.put(s.to, n * b.classes);
    }
  });
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
