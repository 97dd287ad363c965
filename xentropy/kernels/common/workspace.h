// The workspace of kernels that process one row at a time.
#pragma once
#include "arena.h"
#include "common/sums.h"

namespace xentropy {
namespace XENTROPY_TIER {

// The length of a scratch row: room to fill its last cache line, and for one vector beyond.
XENTROPY_INLINE size_t padded_row(size_t classes) { return (classes + 128) / 64 * 64; }

template <class T>
T* take_row(Arena& arena, size_t classes) {
  static_assert(kLine<T> + kLanes<T> <= 64, "the padding of a row");
  return take<T>(arena, padded_row(classes));
}

// Two chunks: one for exps that are not kept, one for data that goes with them.
template <class T>
T* take_chunks(Arena& arena) {
  return take<T>(arena, 2 * kChunk<T>);
}

template <class T>
struct RowWorkspace {
  T *chunks, *exps;  // exps of a whole row, or null

  RowWorkspace(size_t classes, bool keeps_exps, Arena& arena)
      : chunks(take_chunks<T>(arena)), exps(keeps_exps ? take_row<T>(arena, classes) : nullptr) {}
};

}  // namespace XENTROPY_TIER
}  // namespace xentropy
