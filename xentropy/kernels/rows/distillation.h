// The divergence of two softmaxes and its gradient in the logits of one of them, class axis
// contiguous.
//
// Cost: two exps per element; with gradient 12 bytes of memory traffic per element in float32 (both
// logits, gradient). Two scratch rows. common/distillation_row.h has the passes.
#pragma once
#include "common/distillation_row.h"

namespace xentropy {
namespace XENTROPY_TIER {

template <class T>
size_t distillation_bytes(size_t classes) {
  return bytes_of<DistillationWorkspace<T>>(classes);
}

template <class T>
void distillation(const DistillationBlock<T>& b, char* workspace, bool streamed) {
  Arena arena = {workspace, 0};
  const DistillationWorkspace<T> w(b.classes, arena);
  for (size_t r = 0; r < b.rows; ++r) {
    T* out = b.gradient ? b.gradient + ptrdiff_t(r) * b.gradient_stride : nullptr;
    if (b.labels[r] == kIgnored) {
      ignore_row(b, r, out);
    } else {
      distillation_row(b, r, out, w, streamed);
    }
  }
  if (streamed) stream_fence();
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
