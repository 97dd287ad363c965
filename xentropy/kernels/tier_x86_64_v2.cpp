#if !defined(__SSE4_2__) || defined(__AVX__)
#error "setup.py compiles this file with the flags of x86_64_v2"
#endif
#define XENTROPY_TIER x86_64_v2
#include "table.h"
