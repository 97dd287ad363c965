#if !defined(__AVX512F__) || !defined(__AVX512VL__)
#error "setup.py compiles this file with the flags of x86_64_v4"
#endif
#define XENTROPY_TIER x86_64_v4
#include "table.h"
