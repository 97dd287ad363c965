// The plain copy of this machine: reads n floats, streams them past the caches.
// 8 bytes moved an element, as loss + gradient in float32 must move at least.
#define XENTROPY_TIER native
#include "../xentropy/kernels/vector.h"

using namespace xentropy::native;

extern "C" void stream_copy(const float* from, size_t n, float* to) {
  constexpr size_t L = kLanes<float>;
  for (size_t i = 0; i + 4 * L <= n; i += 4 * L) {
    for (size_t q = 0; q < 4; ++q) stream(to + i + q * L, load(from + i + q * L));
  }
  stream_fence();
}
