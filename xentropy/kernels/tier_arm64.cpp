#if !defined(__aarch64__)
#error "setup.py compiles this file with the flags of arm64"
#endif
#define XENTROPY_TIER arm64
#include "table.h"
