// Memory for results.
//
// The first access to a page costs more than the kernel, because the system allocates and zeroes it
// (measured on one thread: 0.29e9 elements/s with pages of 4 KB, 1.0e9 with huge pages, 2.3e9 with
// pages that are already mapped). From 32 MB on malloc returns freed memory to the system at once,
// so that a loop pays this cost in every step. From 128 KB on it may: that depends on the C
// library, on what is next to the block, and on MALLOC_TRIM_THRESHOLD_, which Dask sets. Therefore
// freed blocks are kept (of smaller ones, 3 % of the time of a call would be lost to change
// allocators):
//
//   1. On shelves by size, of a few places each: this bounds what an idle process holds.
//   2. A freed block takes the first place of its shelf, the one that was there the second, and so
//      on until a place was empty. What leaves the last place, the oldest, is given back.
//   3. A request takes the first block of its shelf that is large enough and at most a quarter too
//      large, so that batches of varying length reuse each other's. If there is none, the last
//      place is emptied before memory is requested.
//   4. Below 4 MB a block is from malloc: many results may be alive, and the number of mappings of
//      a process is limited. From 4 MB on a block is a mapping of its own at a multiple of 2 MB:
//      whole huge pages first, no byte beyond the block.
//   5. The huge pages of a kept block are marked with MADV_FREE: the system counts them as
//      available and reclaims them whenever it needs memory; until then their contents are
//      unchanged. The other threads' cores must drop each page from their TLB, which costs some 7
//      us per MB, 10 % of the kernel's time and more below 32 MB. There the block that was freed
//      last, the one that a loop takes again, is marked only when the next one displaces it. Pages
//      of 4 KB are never marked: writing them again would take twice as long. Where the system
//      refuses the mark (old ones, sandboxes, locked memory), blocks of 4 MB and more are left to
//      malloc.
//   6. If the system refuses memory, all that is kept is given back, and it is asked once more.
//
// So a process keeps at most 8 x 1 + 4 x 4 MB from malloc, 32 MB of the block freed last, and 4 x 2
// MB behind huge pages, 64 MB, that are not marked; marked are 3 x 32 MB and one larger block at
// most.
//
// There are no locks: a place is emptied and filled by one atomic exchange, and a block's header
// belongs to whoever has taken it. A fork in between costs the child one block.
#include "driver/pages.h"

#include <stdint.h>
#include <stdlib.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(data, size)
#define ASAN_UNPOISON_MEMORY_REGION(data, size)
#endif

namespace xentropy {

namespace {

#if defined(__linux__) && defined(MADV_FREE)
constexpr bool kMaps = true;
#else
constexpr bool kMaps = false;  // only blocks from malloc are kept
#endif

constexpr size_t KB = 1024, MB = 1024 * KB;
constexpr size_t kMapped = 4 * MB;  // from here on a block is a mapping
constexpr size_t kAlign = 64 * KB;  // the largest base page size of Linux
constexpr size_t kLine = 64;

struct Header {  // in the cache line before the data
  char* start;   // of the memory that malloc or the system has returned
  size_t size;   // of the data
  bool reused;
};

struct Shelf {
  size_t from;  // the smallest block that belongs here
  int places;
  int unmarked;   // so many first places hold blocks that are not marked
  char* kept[8];  // data of blocks, the last freed first, or null
};

Shelf shelves[] = {
    {128 * KB, 8, 8, {}}, {1 * MB, 4, 4, {}}, {kMapped, 4, 1, {}}, {32 * MB, 1, 0, {}}};

// Null for blocks that are not worth keeping.
Shelf* shelf_of(size_t bytes) {
  Shelf* found = nullptr;
  for (Shelf& shelf : shelves)
    if (bytes >= shelf.from) found = &shelf;
  return found;
}

bool marks = kMaps;  // until the system refuses

size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

Header* header_of(const void* data) {
  return reinterpret_cast<Header*>(static_cast<char*>(const_cast<void*>(data)) - kLine);
}

char* exchange(char** place, char* data) {
  return __atomic_exchange_n(place, data, __ATOMIC_ACQ_REL);
}

// --- memory from the system ---

#if defined(__linux__) && defined(MADV_FREE)

constexpr size_t kHugePage = 2 * MB;

// Maps `size` bytes at a multiple of kHugePage; the header is in the kAlign bytes before.
char* map(size_t size) {
  const size_t all = size + kAlign + kHugePage;
  void* raw = mmap(nullptr, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  char* start = static_cast<char*>(raw);
  char* data = reinterpret_cast<char*>(round_up(uintptr_t(start) + kAlign, kHugePage));
  char *first = data - kAlign, *end = data + size;
  if (first > start) munmap(start, size_t(first - start));
  if (end < start + all) munmap(end, size_t(start + all - end));
  // If the advice is refused, only speed is lost. The last, partial huge page is excluded, because
  // it would be more memory than requested.
  madvise(data, size / kHugePage * kHugePage, MADV_HUGEPAGE);
  *header_of(data) = {first, size, false};
  return data;
}

void unmap(const Header& block) { munmap(block.start, block.size + kAlign); }

bool mark(char* data, size_t size) {
  return madvise(data, size / kHugePage * kHugePage, MADV_FREE) == 0;
}

#else

char* map(size_t) { return nullptr; }
void unmap(const Header&) {}
bool mark(char*, size_t) { return false; }

#endif

char* from_malloc(size_t size) {
  char* start = static_cast<char*>(malloc(size + 2 * kLine));
  if (!start) return nullptr;
  char* data = reinterpret_cast<char*>(round_up(uintptr_t(start) + kLine, kLine));
  *header_of(data) = {start, size, false};
  return data;
}

bool is_mapped(size_t size) { return kMaps && size >= kMapped; }

char* create(size_t size) { return is_mapped(size) ? map(size) : from_malloc(size); }

void destroy(char* data) {
  if (!data) return;
  const Header block = *header_of(data);
  ASAN_UNPOISON_MEMORY_REGION(data, block.size);
  if (is_mapped(block.size))
    unmap(block);
  else
    free(block.start);
}

// --- the shelves ---

// Puts a block into the first place, and what was there into the next.
void keep(Shelf* shelf, char* data) {
  for (int i = 0; i < shelf->places && data; ++i) {
    if (i == shelf->unmarked && !mark(data, pages_size(data))) {
      __atomic_store_n(&marks, false, __ATOMIC_RELAXED);
      release_kept_pages();  // what nobody would take again
      break;
    }
    data = exchange(&shelf->kept[i], data);
  }
  destroy(data);
}

// A kept block of `size` bytes or somewhat more, or null.
char* take(Shelf* shelf, size_t size) {
  for (int i = 0; i < shelf->places; ++i) {
    char* data = exchange(&shelf->kept[i], nullptr);
    if (!data) continue;
    const size_t found = pages_size(data);
    if (found >= size && found - size <= size / 4) return data;
    data = exchange(&shelf->kept[i], data);  // back; another thread may have filled the place
    if (data) keep(shelf, data);
  }
  return nullptr;
}

}  // namespace

bool pages_serve(size_t bytes) {
  return shelf_of(bytes) && (bytes < kMapped || __atomic_load_n(&marks, __ATOMIC_RELAXED));
}

size_t pages_size(const void* data) { return header_of(data)->size; }
bool pages_reused(const void* data) { return header_of(data)->reused; }

void* allocate_pages(size_t bytes) {
  if (bytes > SIZE_MAX / 2) return nullptr;
  const size_t size = is_mapped(bytes) ? round_up(bytes, kAlign) : bytes;
  Shelf* shelf = shelf_of(size);
  char* data = shelf ? take(shelf, size) : nullptr;
  if (data) {
    ASAN_UNPOISON_MEMORY_REGION(data, pages_size(data));
    header_of(data)->reused = true;
    return data;
  }
  if (shelf) destroy(exchange(&shelf->kept[shelf->places - 1], nullptr));
  data = create(size);
  if (data) return data;
  release_kept_pages();
  return create(size);
}

void free_pages(void* memory) {
  char* data = static_cast<char*>(memory);
  if (!data) return;
  const size_t size = pages_size(data);
  if (!pages_serve(size)) return destroy(data);
  ASAN_POISON_MEMORY_REGION(data, size);
  keep(shelf_of(size), data);
}

void release_kept_pages() {
  for (Shelf& shelf : shelves)
    for (char*& place : shelf.kept) destroy(exchange(&place, nullptr));
}

}  // namespace xentropy
