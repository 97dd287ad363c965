// The floating-point modes of the executing thread: rounding, flushing of subnormal numbers, traps.
//
// The kernels need the default ones: round to nearest, keep subnormal numbers, no trap. The caller
// may have set others: XLA's threads flush subnormal numbers, and so does a thread after torch's
// set_flush_denormal(True). A new thread inherits the modes of the one that starts it, and OpenMP's
// threads keep them for all calls to come. So each thread of a call sets the default, and restores
// what it has found: a few ns, as the register is only read if it has the default.
//
// Compilers do not know that arithmetic depends on the modes. What is written to memory, or
// computed in functions that the compiler does not see, stays between the two calls; a number in a
// register may be computed after them, as GCC 16 does, unless it passes through `settled`.
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

// The value, computed between the two calls if it is asked for there: no volatile statement is
// moved over another.
static inline double settled(double value) {
  __asm__ volatile("" : "+m"(value));
  return value;
}

}  // namespace xentropy
