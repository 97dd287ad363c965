// The workspace of a kernel, with a canary after it if compiled with AddressSanitizer: the
// sanitizer only detects accesses past the end of the whole allocation, of which a workspace is a
// part.
#pragma once
#include "arena.h"

#if defined(__has_feature)
#define XENTROPY_HAS_FEATURE(name) __has_feature(name)
#else
#define XENTROPY_HAS_FEATURE(name) 0
#endif

namespace xentropy {

#if defined(__SANITIZE_ADDRESS__) || XENTROPY_HAS_FEATURE(address_sanitizer)
constexpr size_t kCanaryBytes = 64;
#else
constexpr size_t kCanaryBytes = 0;
#endif

struct GuardedMemory {
  static constexpr unsigned char kCanary = 0xc5;
  char* start = nullptr;
  size_t bytes = 0;

  GuardedMemory() {}
  GuardedMemory(size_t n, Arena& arena) : start(take<char>(arena, n + kCanaryBytes)), bytes(n) {
    if (start && kCanaryBytes) __builtin_memset(start + bytes, kCanary, kCanaryBytes);
  }

  // Aborts if a kernel has written past its workspace.
  void check() const {
    for (size_t i = 0; i < kCanaryBytes; ++i) {
      if (static_cast<unsigned char>(start[bytes + i]) != kCanary) __builtin_trap();
    }
  }
};

}  // namespace xentropy
