// The floating-point modes of the executing thread: rounding, flushing of subnormal numbers, traps.
//
// The kernels need the default ones: round to nearest, keep subnormal numbers, no trap. The caller
// may have set others: XLA's threads flush subnormal numbers, and so does a thread after torch's
// set_flush_denormal(True). A new thread inherits the modes of the one that starts it, and OpenMP's
// threads keep them for all calls to come. So each thread of a call sets the default, and restores
// what it has found: a few ns, as the register is only read if it has the default.
#pragma once
#include "cpu.h"

namespace xentropy {

// Sets the default modes; returns those before, for restore_modes.
static inline uint64_t set_default_modes() {
  const uint64_t before = read_modes();
  if ((before & kModes) != kDefaultModes) write_modes(kDefaultModes);
  return before;
}

static inline void restore_modes(uint64_t before) {
  if ((before & kModes) != kDefaultModes) write_modes(before);
}

}  // namespace xentropy
