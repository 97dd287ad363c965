// Workspaces: one piece of memory, from a cache line on, cut into arrays that each start at one.
#pragma once
#include <stddef.h>

namespace xentropy {

// Without memory (start is null) the arrays are null and an arena counts the bytes that they need:
// what a workspace consists of is written once, in its constructor.
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

// The bytes of a Workspace, whose constructor takes an arena last.
template <class Workspace, class... Arguments>
static inline size_t bytes_of(Arguments... arguments) {
  Arena counted = {nullptr, 0};
  Workspace workspace(arguments..., counted);
  (void)workspace;
  return counted.used;
}

}  // namespace xentropy
