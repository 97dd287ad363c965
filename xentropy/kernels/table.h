// The kernel table of one tier. Only tier_*.cpp include this file, after they define XENTROPY_TIER.
#pragma once
#include "columns/labels.h"
#include "columns/statistics.h"
#include "common/labels.h"
#include "common/softcap.h"
#include "groups/dense.h"
#include "groups/distillation.h"
#include "groups/labels.h"
#include "groups/lse_gradient.h"
#include "groups/softmax.h"
#include "groups/statistics.h"
#include "half.h"
#include "rows/dense.h"
#include "rows/distillation.h"
#include "rows/labels.h"
#include "rows/lse_gradient.h"
#include "rows/softmax.h"
#include "rows/sparse_distillation.h"
#include "rows/split.h"
#include "rows/statistics.h"
#include "rows/statistics_split.h"

namespace xentropy {
namespace XENTROPY_TIER {

// kWiden: the conversion of one element.
template <float (*kWiden)(uint16_t)>
void widen_row(const char* from, size_t n, float* to) {
  for (size_t i = 0; i < n; ++i) {
    uint16_t bits;
    __builtin_memcpy(&bits, from + 2 * i, 2);
    to[i] = kWiden(bits);
  }
}

// kNarrow: the conversion of one element.
template <uint16_t (*kNarrow)(float)>
void narrow_row(const float* from, size_t n, char* to) {
  for (size_t i = 0; i < n; ++i) {
    const uint16_t bits = kNarrow(from[i]);
    __builtin_memcpy(to + 2 * i, &bits, 2);
  }
}

template <class T>
constexpr Kernels<T> kernels() {
  Kernels<T> k = {};
  k.rows = {rows<T>, rows_bytes<T>};
  k.split = {split<T>, split_bytes<T>};
  k.dense = {dense<T>, dense_bytes<T>};
  k.groups = {groups<T>, groups_bytes<T>};
  k.dense_groups = {dense_groups<T>, dense_groups_bytes<T>};
  k.columns = {columns<T>, columns_bytes<T>};
  k.softmax = {softmax<T>, softmax_bytes<T>};
  k.softmax_groups = {softmax_groups<T>, softmax_groups_bytes<T>};
  k.statistics = {statistics<T>, statistics_bytes<T>};
  k.statistics_groups = {statistics_groups<T>, statistics_groups_bytes<T>};
  k.statistics_split = {statistics_split<T>, statistics_split_bytes<T>};
  k.softcap = {cap<T>, times_slope<T>};
  k.distillation = {distillation<T>, distillation_bytes<T>};
  k.distillation_groups = {distillation_groups<T>, distillation_groups_bytes<T>};
  k.sparse_distillation = {sparse_distillation<T>, sparse_distillation_bytes<T>};
  k.lse_gradient = {lse_gradient<T>, lse_gradient_bytes<T>};
  k.lse_gradient_groups = {lse_gradient_groups<T>, lse_gradient_groups_bytes<T>};
  k.statistics_columns = {statistics_columns<T>, statistics_columns_bytes<T>};
  return k;
}

template <class S>
constexpr HalfKernels<S> half_kernels(Widen widen, Narrow narrow) {
  HalfKernels<S> k = {};
  k.rows = {rows<S>, rows_bytes<S>};
  k.split = {split<S>, split_bytes<S>};
  k.statistics = {statistics<S>, statistics_bytes<S>};
  k.statistics_split = {statistics_split<S>, statistics_split_bytes<S>};
  k.softcap = {cap<S>, times_slope<S>};
  k.lse_gradient = {lse_gradient<S>, lse_gradient_bytes<S>};
  k.widen = widen;
  k.narrow = narrow;
  return k;
}

constexpr Tier all_kernels() {
  Tier t = {};
  t.name = XENTROPY_STRING(XENTROPY_TIER);
  t.f32 = kernels<float>();
  t.f64 = kernels<double>();
  t.f16 = half_kernels<F16>(widen_row<widen_f16>, narrow_row<narrow_f16>);
  t.bf16 = half_kernels<BF16>(widen_row<widen_bf16>, narrow_row<narrow_bf16>);
  t.count_labels = count_labels;
  t.mark_labels = mark_labels;
  return t;
}

extern const Tier tier;
constexpr Tier tier = all_kernels();

}  // namespace XENTROPY_TIER
}  // namespace xentropy
