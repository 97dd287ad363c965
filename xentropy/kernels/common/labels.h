// A look at the labels of a call before anything is written, and the labels as kernels want them.
//
// Cost: 8 bytes a row, read once for each. Plain loops, which compilers turn into the tier's
// vectors.
#pragma once
#include "tier.h"

namespace xentropy {
namespace XENTROPY_TIER {

// An ignored label is not counted, and not wrong.
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

// kIgnored for rows that do not count. Labels were looked at before; should another thread have
// changed one since, its row is left out rather than memory beyond the classes touched.
static void mark_labels(const LabelRule& rule, const int64_t* label, size_t n, int64_t* to) {
  const uint64_t last = rule.last, ignored = uint64_t(rule.ignored), all = rule.ignores ? 0 : 1;
  for (size_t i = 0; i < n; ++i) {
    const uint64_t y = uint64_t(label[i]), counts = uint64_t(y != ignored) | all;
    to[i] = counts & uint64_t(y <= last) ? int64_t(y) : kIgnored;
  }
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
