// What the CPU can execute, which registers the operating system saves on a context switch, and the
// register of the floating-point modes.
#pragma once
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#include <stdint.h>
#include <string.h>

namespace xentropy {

#if defined(__x86_64__)

struct CpuidLeaf {
  unsigned a = 0, b = 0, c = 0, d = 0;
  CpuidLeaf(unsigned leaf, unsigned subleaf) {
    if (!__get_cpuid_count(leaf, subleaf, &a, &b, &c, &d)) a = b = c = d = 0;
  }
};

static inline bool has(unsigned word, unsigned bits) { return (word & bits) == bits; }

// The register states that the operating system saves (XCR0), or 0.
static inline unsigned saved_states() {
  constexpr unsigned kOsXsave = 1u << 27;
  if (!has(CpuidLeaf(1, 0).c, kOsXsave)) return 0;
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

// The level of the x86-64 psABI; each includes the levels below it.
static inline int x86_64_level() {
  const CpuidLeaf basic(1, 0), extended(7, 0), amd(0x80000001u, 0);
  constexpr unsigned kV2 = 1u << 0 | 1u << 9 | 1u << 13 | 1u << 19 | 1u << 20 | 1u << 23;
  constexpr unsigned kV3 = 1u << 12 | 1u << 22 | 1u << 28 | 1u << 29;  // FMA MOVBE AVX F16C
  constexpr unsigned kV3Extended = 1u << 3 | 1u << 5 | 1u << 8;        // BMI1 AVX2 BMI2
  constexpr unsigned kLzcnt = 1u << 5;
  constexpr unsigned kV4 = 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31;  // F DQ CD BW VL
  constexpr unsigned kAvxState = 0x6, kAvx512State = 0xe6;
  const unsigned saved = saved_states();
  if (!has(basic.c, kV2)) return 1;
  const bool v3 = has(basic.c, kV3) && has(extended.b, kV3Extended) && has(amd.c, kLzcnt);
  if (!v3 || !has(saved, kAvxState)) return 2;
  return has(extended.b, kV4) && has(saved, kAvx512State) ? 4 : 3;
}

static inline bool cpu_supports(const char* tier) {
  const char* prefix = "x86_64_v";
  const size_t n = strlen(prefix);
  return strncmp(tier, prefix, n) == 0 && tier[n] - '0' <= x86_64_level();
}

constexpr uint64_t kDefaultModes = 0x1f80;  // MXCSR: no exception traps
constexpr uint64_t kModes = 0xffc0;         // without the flags of what has happened

static inline uint64_t read_modes() {
  uint32_t modes;
  __asm__ volatile("stmxcsr %0" : "=m"(modes));
  return modes;
}
static inline void write_modes(uint64_t modes) {
  const uint32_t low = uint32_t(modes);
  __asm__ volatile("ldmxcsr %0" : : "m"(low) : "memory");
}

#elif defined(__aarch64__)

// NEON with fused multiply-add is part of the base architecture.
static inline bool cpu_supports(const char* tier) { return strcmp(tier, "arm64") == 0; }

constexpr uint64_t kDefaultModes = 0;  // FPCR
constexpr uint64_t kModes = ~uint64_t(0);

static inline uint64_t read_modes() {
  uint64_t modes;
  __asm__ volatile("mrs %0, fpcr" : "=r"(modes));
  return modes;
}
static inline void write_modes(uint64_t modes) {
  __asm__ volatile("msr fpcr, %0" : : "r"(modes) : "memory");
}

#endif

}  // namespace xentropy
