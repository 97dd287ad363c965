// Workspaces: one block of memory that starts at a cache line, cut into arrays that each start at a
// cache line.
#pragma once
#include <stddef.h>

namespace xentropy {

// If `start` is null, the arrays are null and the arena only counts the bytes that they need. So
// the constructor of a workspace serves both to measure it and to lay it out.
struct Arena {
  char* start;
  size_t used;
};

constexpr size_t kArenaAlign = 64;

template <class T>
static inline T* take(Arena& arena, size_t n) {
  static_assert(alignof(T) <= kArenaAlign, "arrays start at cache lines, and no later");
  T* array = arena.start ? reinterpret_cast<T*>(arena.start + arena.used) : nullptr;
  arena.used += (n * sizeof(T) + kArenaAlign - 1) / kArenaAlign * kArenaAlign;
  return array;
}

// The size in bytes of a Workspace. Its constructor takes `arguments`, then an arena.
template <class Workspace, class... Arguments>
static inline size_t bytes_of(Arguments... arguments) {
  Arena counted = {nullptr, 0};
  Workspace workspace(arguments..., counted);
  (void)workspace;
  return counted.used;
}

}  // namespace xentropy
