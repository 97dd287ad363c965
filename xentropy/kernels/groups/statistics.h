// Everything of short adjacent rows: they are transposed (groups/transposed.h), and
// common/statistics_lanes.h does the rest.
//
// Without a transposition three sums and a maximum would take a tree of shuffles each, and the
// rows' own numbers a permutation wherever they are needed.
#pragma once
#include "common/statistics_lanes.h"
#include "groups/transposed.h"

namespace xentropy {
namespace XENTROPY_TIER {

// The rows of a block for statistics_of_lanes.
template <class T>
struct AdjacentRows {
  const StatisticsBlock<T>& b;
  PaddedRows<T> padded;

  AdjacentRows(const StatisticsBlock<T>& block, T* copy)
      : b(block), padded{b.x, b.rows, b.classes, b.labels, copy} {}

  const T* row(size_t r) const { return b.x + r * b.classes; }
  T logit(size_t r, size_t c) const { return row(r)[c]; }

  void rank(size_t r, const LaneBatch<T>& s, size_t i) const {
    LaneRanks<T> ranks(s, i);
    columns_of_rows(padded.from(r), b.classes, row(r) + kGroupElements, s.columns + i * b.classes,
                    &ranks);
    ranks.put(s, i);
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
    statistics_of_lanes<scaled.value>(b, scratch.batch, AdjacentRows<T>(b, scratch.copy));
  });
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
