// The table of this tier's kernels. Included by tier_*.cpp alone, after XENTROPY_TIER.
#pragma once
#include "columns/labels.h"
#include "rows/dense.h"
#include "groups/dense.h"
#include "groups/labels.h"
#include "half.h"
#include "common/labels.h"
#include "groups/softmax.h"
#include "rows/split.h"

namespace xentropy {
namespace XENTROPY_TIER {

template <float (*kWiden)(uint16_t)>
void widen_row(const char* from, size_t n, float* to) {
  for (size_t i = 0; i < n; ++i) {
    uint16_t bits;
    __builtin_memcpy(&bits, from + 2 * i, 2);
    to[i] = kWiden(bits);
  }
}

template <uint16_t (*kNarrow)(float)>
void narrow_row(const float* from, size_t n, char* to) {
  for (size_t i = 0; i < n; ++i) {
    const uint16_t bits = kNarrow(from[i]);
    __builtin_memcpy(to + 2 * i, &bits, 2);
  }
}

template <class T>
constexpr Kernels<T> kKernels = {rows<T>,         split<T>,   dense<T>,   groups<T>,
                                 dense_groups<T>, columns<T>, softmax<T>, softmax_groups<T>};

extern const Tier tier;
const Tier tier = {XENTROPY_STRING(XENTROPY_TIER),
                   kKernels<float>,
                   kKernels<double>,
                   rows<F16>,
                   rows<BF16>,
                   split<F16>,
                   split<BF16>,
                   widen_row<widen_f16>,
                   widen_row<widen_bf16>,
                   narrow_row<narrow_f16>,
                   narrow_row<narrow_bf16>,
                   count_labels,
                   mark_labels};

}  // namespace XENTROPY_TIER
}  // namespace xentropy
