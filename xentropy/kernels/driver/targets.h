// The labels of a call in the form that kernels take; sums over rows in a fixed order; storage of
// the losses.
#pragma once
#include "driver/staging.h"

namespace xentropy {

static inline LabelRule label_rule(const CrossEntropyCall& c) {
  return {c.terms.classes - 1, c.ignore_bits, c.ignores};
}

// The labels of a block for the kernel. Rows with sample weight 0 are ignored too.
static inline void read_labels(const Tier& tier, const CrossEntropyCall& c, size_t row, size_t n,
                               const double* sample_weight, int64_t* labels) {
  if (c.labels.data) {
    tier.mark_labels(label_rule(c), labels_of(c.labels, row, n, labels), n, labels);
  } else {
    for (size_t i = 0; i < n; ++i) labels[i] = 0;
  }
  for (size_t i = 0; sample_weight && i < n; ++i) {
    labels[i] = sample_weight[i] == 0 ? kIgnored : labels[i];
  }
}

// k classes a row in the same form: at[i * k + j] is class j of row i. `labels` become the first
// class that counts of each row; kIgnored where none does.
static inline void read_index(const Tier& tier, const CrossEntropyCall& c, const Layout& index,
                              size_t row, size_t n, int64_t* at, int64_t* labels) {
  const size_t k = index.classes.size();
  Layout one = index;
  for (size_t j = k; j-- > 0;) {
    one.data = index.data + index.classes.offset(j);
    int64_t* found = k == 1 ? at : labels;
    tier.mark_labels(label_rule(c), labels_of(one, row, n, found), n, found);
    for (size_t i = 0; k > 1 && i < n; ++i) at[i * k + j] = labels[i];
  }
  for (size_t i = 0; i < n; ++i) {
    const int64_t* of_row = at + i * k;
    size_t j = 0;
    while (j < k && of_row[j] == kIgnored) ++j;
    labels[i] = j < k ? of_row[j] : kIgnored;
  }
}

// Rows of a block in which each has k classes of its own.
static inline size_t rows_of_index(size_t rows, const Layout& index) {
  const size_t fitting = index.data ? kScratchElements / index.classes.size() : rows;
  return fitting < rows ? (fitting ? fitting : 1) : rows;
}

// A sum over rows in lanes, selected by the row number: a single chain of additions would take
// longer than the group kernel. The result does not depend on the division into blocks.
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
