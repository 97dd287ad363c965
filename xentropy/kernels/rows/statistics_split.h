// The statistics of one long row shared by several threads, in two steps:
//
//   1. the moments of a part (kRowPart logits): any thread;
//   2. the parts joined in order, and the numbers: one thread, after step 1 of all parts.
//
// The row kernel joins the same parts, so the results have the same bits.
#pragma once
#include "rows/statistics.h"

namespace xentropy {
namespace XENTROPY_TIER {

// The workspace of a row that threads share.
template <class T>
struct StatisticsSplitWorkspace {
  RowMoments* parts;
  T* chunks;

  StatisticsSplitWorkspace(size_t classes, Arena& arena)
      : parts(take<RowMoments>(arena, row_parts(classes))), chunks(take_chunks<T>(arena)) {}
};

template <class S>
size_t statistics_split_bytes(size_t classes) {
  return bytes_of<StatisticsSplitWorkspace<Arithmetic<S>>>(classes);
}

template <class S>
void statistics_split(Step step, const StatisticsBlock<S>& b, char* workspace, size_t part) {
  Arena arena = {workspace, 0};
  const StatisticsSplitWorkspace<Arithmetic<S>> w(b.classes, arena);
  with_scaled(b.logit_scale, [&](auto scaled) {
    const StatisticsRow<S, scaled.value> row(b, 0);
    if (step == Step::kExps) {
      w.parts[part] = row.part(RowPart(part, b.classes));
    } else {
      const auto of = [&](size_t i) { return w.parts[i]; };
      put_moments(b, 0, row, joined_parts(b.classes, of), w.chunks);
    }
  });
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
