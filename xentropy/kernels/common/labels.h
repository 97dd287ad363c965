// Checks and counts the labels of a call before anything is written, and converts labels to the
// form that kernels take.
//
// Cost: 8 bytes per row, read once by each function. Plain loops, which compilers vectorise.
#pragma once
#include "tier.h"

namespace xentropy {
namespace XENTROPY_TIER {

// An ignored label is neither counted nor wrong.
static LabelCount count_labels(const LabelRule& rule, const int64_t* label, size_t n) {
  const uint64_t last = rule.last, ignored = uint64_t(rule.ignored), all = rule.ignores ? 0 : 1;
  uint64_t counted = 0, wrong = 0;
  for (size_t i = 0; i < n; ++i) {
    const uint64_t y = uint64_t(label[i]), counts = uint64_t(y != ignored) | all;
    counted += counts;
    wrong |= uint64_t(y > last) & counts;
  }
  return {size_t(counted), wrong != 0};
}

// Writes kIgnored for ignored rows. The labels were checked before. If another thread has changed
// one since, its row is ignored, so that no memory outside of the row's classes is accessed.
static void mark_labels(const LabelRule& rule, const int64_t* label, size_t n, int64_t* to) {
  const uint64_t last = rule.last, ignored = uint64_t(rule.ignored), all = rule.ignores ? 0 : 1;
  for (size_t i = 0; i < n; ++i) {
    const uint64_t y = uint64_t(label[i]), counts = uint64_t(y != ignored) | all;
    to[i] = counts & uint64_t(y <= last) ? int64_t(y) : kIgnored;
  }
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
