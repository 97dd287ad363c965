// The labels of a call as kernels want them, and what becomes of the losses: sums over rows, whose
// order nothing changes, and an array.
#pragma once
#include "staging.h"

namespace xentropy {

// Two questions about a label's 64 bits, answered by 0 or 1 in operations on 64-bit integers
// that the oldest CPU has vectors for; comparisons are not among them.
struct LabelCheck {
  uint64_t last, ignored, all;

  explicit LabelCheck(const CrossEntropyCall& c)
      : last(c.terms.classes - 1), ignored(uint64_t(c.ignore_bits)), all(c.ignores ? 0 : 1) {}
  // Is it a label that counts, right or wrong?
  uint64_t counted(uint64_t y) const {
    const uint64_t differs = y ^ ignored;
    return (differs | (0 - differs)) >> 63 | all;
  }
  // Is it no class?
  uint64_t wrong(uint64_t y) const { return (y | (last - y)) >> 63; }
};

// Labels of a block for the kernel. They were checked before; should another thread have
// changed one since, its row is left out rather than memory beyond the classes touched.
static inline void read_labels(const CrossEntropyCall& c, size_t row, size_t n,
                               const double* repeat, int64_t* labels) {
  const LabelCheck check(c);
  for (size_t i = 0; !c.labels.data && i < n; ++i) labels[i] = 0;
  for_label_runs(c.labels, row, row + n, [=](size_t r, size_t m, auto label) {
    int64_t* to = labels + (r - row);
    for (size_t i = 0; i < m; ++i) {
      const uint64_t y = label(i), counts = check.counted(y) & ~check.wrong(y);
      to[i] = int64_t(y | (counts - 1));
    }
    return true;
  });
  static_assert(kIgnored == -1, "all bits");
  for (size_t i = 0; repeat && i < n; ++i) {
    labels[i] = repeat[i] == 0 ? kIgnored : labels[i];
  }
}

// What is added over rows is added in lanes by the number of the row, because a chain of additions
// would take longer than the group kernel does. Blocks change nothing.
struct SumOverRows {
  static constexpr size_t kCount = 8;
  double lane[kCount] = {};

  void add(size_t row, size_t n, const double* value) {
    size_t i = 0;
    for (; i < n && (row + i) % kCount != 0; ++i) lane[(row + i) % kCount] += value[i];
    for (; i + kCount <= n; i += kCount) {
      for (size_t j = 0; j < kCount; ++j) lane[j] += value[i + j];
    }
    for (size_t j = 0; i < n; ++i, ++j) lane[j] += value[i];
  }
  double total() const {
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) +
           ((lane[1] + lane[5]) + (lane[3] + lane[7]));
  }
};

static inline void store_losses(const CrossEntropyCall& c, size_t row, size_t n,
                                const double* loss) {
  if (!c.row_loss) return;
  if (c.row_loss_float64) {
    __builtin_memcpy(static_cast<double*>(c.row_loss) + row, loss, n * sizeof(double));
  } else {
    float* to = static_cast<float*>(c.row_loss) + row;
    for (size_t i = 0; i < n; ++i) to[i] = float(loss[i]);
  }
}

}  // namespace xentropy
