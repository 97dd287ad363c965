#if !defined(__AVX2__) || !defined(__FMA__) || defined(__AVX512F__)
#error "setup.py compiles this file with the flags of x86_64_v3"
#endif
#define XENTROPY_TIER x86_64_v3
#include "table.h"
