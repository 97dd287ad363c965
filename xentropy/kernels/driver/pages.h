// Memory for large results: huge pages, and reuse of the last freed block.
#pragma once
#include <stddef.h>

namespace xentropy {

// Null if the system has no memory left, or if pages_supported() is false.
void* allocate_pages(size_t bytes);
void free_pages(void* data);

bool pages_supported();
size_t pages_size(const void* data);  // bytes, at least as many as requested
bool pages_reused(const void* data);  // its pages were written before: no page faults
void set_page_reuse(bool keep);       // whether free_pages keeps a block; initially true

}  // namespace xentropy
