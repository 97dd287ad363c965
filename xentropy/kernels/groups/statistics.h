// Everything of short adjacent rows: they are transposed, kLanes<T> rows at a time, and
// common/statistics_lanes.h does the rest.
//
// Cost: per vector of kLanes<T> rows and one class, log2(kLanes<T>) shuffles, and what is said
// there. Without a transposition three sums and a maximum take a tree of shuffles each, and the
// rows' own numbers a permutation wherever they are needed.
#pragma once
#include "common/statistics_lanes.h"
#include "groups/loop.h"
#include "simd/transpose.h"

namespace xentropy {
namespace XENTROPY_TIER {

// Transposes the first n of the classes at x, at most kWanted, of kLanes<T> rows, and ranks them
// meanwhile: this overlaps shuffles with comparisons. The shuffles for other classes are left out.
// `next` is prefetched. Inline, the addresses of the rows would be kept, but in vectors.
template <size_t kWanted, class T>
__attribute__((noinline)) void rank_classes(const T* x, size_t classes, size_t n, const T* next,
                                            T* columns, LaneRanks<T>* ranks) {
  constexpr size_t L = kLanes<T>;
  LaneRanks<T> r = *ranks;
  transpose<T>(
      [&](size_t i) XENTROPY_INLINE_LAMBDA {
        if (i % (kLine<T> / L) == 0) prefetch_group(next + i * L);
        return load(x + i * classes);
      },
      [&](size_t c, Vec<T> v) XENTROPY_INLINE_LAMBDA {
        if (c >= kWanted) return;
        store(columns + c * L, v);
        if (c < n) r.take_class(v);
      });
  *ranks = r;
}

// Transposes and ranks kLanes<T> rows. `next`: rows to come.
template <class T>
void rank_rows(const T* x, size_t classes, const T* next, T* columns, LaneRanks<T>* ranks) {
  constexpr size_t L = kLanes<T>;
  for (size_t c = 0, left; c < classes; c += L) {
    left = classes - c;
    T* to = columns + c * L;
    if (left > L / 2) {
      rank_classes<L>(x + c, classes, left, next + c * L, to, ranks);
    } else if (left > L / 4) {
      rank_classes<L / 2>(x + c, classes, left, next + c * L, to, ranks);
    } else {
      rank_classes<(L + 3) / 4>(x + c, classes, left, next + c * L, to, ranks);
    }
  }
}

// The rows of a block for statistics_of_lanes.
template <class T>
struct AdjacentRows {
  static constexpr size_t L = kLanes<T>;
  const StatisticsBlock<T>& b;
  T* copy;  // scratch for kLanes<T> rows

  const T* row(size_t r) const { return b.x + r * b.classes; }
  T logit(size_t r, size_t c) const { return row(r)[c]; }

  void rank(size_t r, const LaneBatch<T>& s, size_t i) const {
    LaneRanks<T> ranks(s, i);
    rank_rows(padded(r), b.classes, row(r) + kGroupElements, s.columns + i * b.classes, &ranks);
    ranks.put(s, i);
  }

 private:
  // kLanes<T> rows from r on, for reads that run past their end by less than a vector: in place, or
  // a copy with zeros for rows that are ignored or missing.
  const T* padded(size_t r) const {
    const size_t C = b.classes, left = b.rows - r, read = left < 2 * L ? left : 2 * L;
    const bool beyond = left >= L && (left - L) * C >= L;
    if (beyond && no_row_ignored(b.labels ? b.labels + r : nullptr, read)) return row(r);
    __builtin_memset(copy, 0, (L * C + L) * sizeof(T));
    for (size_t i = 0; i < L; ++i) {
      if (is_counted(b, r + i)) __builtin_memcpy(copy + i * C, row(r + i), C * sizeof(T));
    }
    return copy;
  }
};

template <class T>
struct AdjacentScratch {
  LaneBatch<T> batch;
  T* copy;
  AdjacentScratch(size_t classes, Arena& arena)
      : batch(classes, arena), copy(take<T>(arena, (classes + 1) * kLanes<T>)) {}
};

template <class T>
size_t statistics_groups_bytes(size_t classes) {
  return bytes_of<AdjacentScratch<T>>(classes);
}

template <class T>
void statistics_groups(const StatisticsBlock<T>& b, char* workspace) {
  Arena arena = {workspace, 0};
  const AdjacentScratch<T> scratch(b.classes, arena);
  with_scaled(b.logit_scale, [&](auto scaled) {
    statistics_of_lanes<scaled.value>(b, scratch.batch, AdjacentRows<T>{b, scratch.copy});
  });
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
