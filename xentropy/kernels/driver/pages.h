// Memory for results of 128 KB and more: huge pages, and reuse of freed blocks.
#pragma once
#include <stddef.h>

namespace xentropy {

// Whether results of so many bytes are better off here than with malloc.
bool pages_serve(size_t bytes);

// At a multiple of 64 bytes. Null if the system has no memory left.
void* allocate_pages(size_t bytes);
void free_pages(void* data);
void release_kept_pages();  // gives all that is kept back to the system

size_t pages_size(const void* data);  // bytes, at least as many as requested
bool pages_reused(const void* data);  // its pages were written before: no page faults

}  // namespace xentropy
