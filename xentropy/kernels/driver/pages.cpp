// Memory for large results.
//
// The first access to a page costs more than the kernel, because the system allocates and zeroes it
// (measured on one thread: 0.29e9 elements/s with pages of 4 KB, 1.0e9 with huge pages, 2.3e9 with
// pages that are already mapped). From 32 MB on malloc returns freed memory to the system at once,
// so that a loop pays this cost in every step. Therefore:
//
//   1. a block is mapped at a multiple of 2 MB: whole huge pages first, no byte beyond the block;
//   2. at most one freed block, the last, is kept for the next result of the same size. It is
//      marked with MADV_FREE: the system counts its pages as available and reclaims them whenever
//      it needs memory; until then their contents are unchanged;
//   3. a request of another size unmaps it.
#include "driver/pages.h"

#if defined(__linux__)
#include <stdint.h>
#include <sys/mman.h>
#endif

namespace xentropy {

#if defined(__linux__) && defined(MADV_FREE)

namespace {

constexpr size_t kHugePage = size_t(2) << 20;
constexpr size_t kAlign = size_t(64) << 10;  // the largest base page size of Linux

struct Header {
  size_t size;  // of the data
  bool reused;
};

// The block that is kept, or null. Threads take it and replace it by one atomic exchange.
char* kept = nullptr;
bool keeps = true;

size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

Header* header_of(const void* data) {
  return reinterpret_cast<Header*>(static_cast<char*>(const_cast<void*>(data)) - kAlign);
}

char* exchange(char* block) { return __atomic_exchange_n(&kept, block, __ATOMIC_ACQ_REL); }

void unmap(char* data) {
  if (data) munmap(data - kAlign, header_of(data)->size + kAlign);
}

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
  return data;
}

}  // namespace

bool pages_supported() { return true; }
size_t pages_size(const void* data) { return header_of(data)->size; }
bool pages_reused(const void* data) { return header_of(data)->reused; }
void set_page_reuse(bool keep) { keeps = keep; }

void* allocate_pages(size_t bytes) {
  if (bytes > SIZE_MAX / 2) return nullptr;
  const size_t size = round_up(bytes ? bytes : 1, kAlign);
  char* data = exchange(nullptr);
  if (data && pages_size(data) == size) {
    header_of(data)->reused = true;
    return data;
  }
  unmap(data);
  data = map(size);
  if (data) *header_of(data) = {size, false};
  return data;
}

void free_pages(void* memory) {
  char* data = static_cast<char*>(memory);
  if (!data) return;
  if (keeps && madvise(data, pages_size(data), MADV_FREE) == 0) data = exchange(data);
  unmap(data);
}

#else

bool pages_supported() { return false; }
size_t pages_size(const void*) { return 0; }
bool pages_reused(const void*) { return false; }
void set_page_reuse(bool) {}
void* allocate_pages(size_t) { return nullptr; }
void free_pages(void*) {}

#endif

}  // namespace xentropy
