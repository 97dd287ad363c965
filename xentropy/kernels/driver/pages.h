// Memory for large results: huge pages, and the last freed block is lent out again.
#pragma once
#include <stddef.h>

namespace xentropy {

// Null where the system has none to give, or no such memory (pages_offered() is false).
void* allocate_pages(size_t bytes);
void free_pages(void* data);

bool pages_supported();
size_t pages_size(const void* data);  // bytes, at least as many as were asked for
bool pages_reused(const void* data);  // were they written before, so that no fault follows?
void keep_pages(bool keep);           // keep a freed block? (true to begin with)

}  // namespace xentropy
