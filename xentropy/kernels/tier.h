// The contract: what one tier (an instruction-set level) offers, and what it is given.
//
// Precision policy: float16, bfloat16 and float32 logits are computed in float32,
// float64 logits in float64; whatever is added over classes is added in float64 after
// at most four terms; losses leave the kernels in float64.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "half.h"

namespace xentropy {

// The label of a row that does not count; its logits are not read.
constexpr int64_t kIgnored = -1;

// The options of a call that are the same for every row.
struct Terms {
  size_t classes;
  double label_smoothing;
  double z_loss;
  double logit_scale;
  double unit;     // 1 / log(base)
  double divisor;  // of the gradients; the mean's
};

// Rows whose places are known: what one kernel call works on. Strides in elements. S is the type
// that is stored, T the one that is computed.
template <class S>
struct Block {
  typedef Arithmetic<S> T;
  size_t rows;
  const S* logits;
  ptrdiff_t logits_stride;
  S* gradient;  // null: the losses alone; logits: in place
  ptrdiff_t gradient_stride;
  const int64_t* labels;   // kIgnored where a row does not count
  const T* probabilities;  // null: the labels are the targets
  ptrdiff_t probabilities_stride;
  // Of the column kernel, whose rows are adjacent: the strides above are 1, and these are
  ptrdiff_t logits_class_stride, gradient_class_stride;
  const double* weight;    // per class, or null
  const double* repeat;    // sample weight per row, or null
  const double* upstream;  // d result / d loss per row, or null: upstream_all
  double upstream_all;
  double* loss;  // cache lines: group kernels write whole vectors, of which the end may not count
};

// Every cross-entropy kernel is called like this; `streamed` asks for non-temporal stores of the
// gradient.
template <class S>
using CrossEntropyKernel = void (*)(const Terms&, const Block<S>&, Arithmetic<S>* scratch,
                                    bool streamed);

// One row by several threads, step by step: kExps of all parts, kSettle once (`part` is 0),
// kGradient of all parts. The block has one row, with class indices, class axis contiguous.
enum class Step { kExps, kSettle, kGradient };
template <class S>
using SplitKernel = void (*)(Step, const Terms&, const Block<S>&, Arithmetic<S>* scratch,
                             size_t part, bool streamed);

// What the softmax family writes of every row.
enum class Result { kSoftmax, kLogSoftmax, kLogSumExp, kEntropy, kTargetEntropy };

// Of kTargetEntropy, where the rows are probabilities, driver_softmax.cpp takes care.
template <class T>
struct SoftmaxBlock {
  Result what;
  size_t rows, classes;
  const T* x;
  ptrdiff_t x_stride;  // in elements
  T* out;              // of softmax and log_softmax; x: in place
  ptrdiff_t out_stride;
  double* value;  // of the reductions: one a row
};
template <class T>
using SoftmaxKernel = void (*)(const SoftmaxBlock<T>&, T* scratch, bool streamed);

// n contiguous elements of a 16-bit type, at any address, to and from float32.
using Widen = void (*)(const char* from, size_t n, float* to);
using Narrow = void (*)(const float* from, size_t n, char* to);

// Which labels are classes, and which rows do not count.
struct LabelRule {
  uint64_t last;    // the largest class
  int64_t ignored;  // the 64 bits of the label of a row that does not count,
  bool ignores;     // if there is such a label
};
struct LabelCount {
  size_t counted;  // rows that count, right or wrong
  bool wrong;      // is one of them no class?
};
using CountLabels = LabelCount (*)(const LabelRule&, const int64_t* label, size_t n);
using MarkLabels = void (*)(const LabelRule&, const int64_t* label, size_t n, int64_t* to);

template <class T>
struct Kernels {
  CrossEntropyKernel<T> rows;          // class indices, class axis contiguous
  SplitKernel<T> split;                // the same, of one row
  CrossEntropyKernel<T> dense;         // every class of a row has target mass of its own
  CrossEntropyKernel<T> groups;        // class indices, short rows, adjacent, many at a time
  CrossEntropyKernel<T> dense_groups;  // as dense, short rows, adjacent, probabilities too
  CrossEntropyKernel<T> columns;       // class indices, class axis strided, rows adjacent
  SoftmaxKernel<T> softmax;            // class axis contiguous
  SoftmaxKernel<T> softmax_groups;     // the same, short rows, adjacent
};

struct Tier {
  const char* name;
  Kernels<float> f32;
  Kernels<double> f64;
  // 16-bit types: as f32.rows; all else is widened into scratch rows for f32's kernels, and
  // narrowed on the way out.
  CrossEntropyKernel<F16> rows_f16;
  CrossEntropyKernel<BF16> rows_bf16;
  SplitKernel<F16> split_f16;
  SplitKernel<BF16> split_bf16;
  Widen widen_f16, widen_bf16;
  Narrow narrow_f16, narrow_bf16;
  CountLabels count_labels;
  MarkLabels mark_labels;  // `to` may be `label`
};

static inline CrossEntropyKernel<F16> row_kernel(const Tier& tier, F16) { return tier.rows_f16; }
static inline CrossEntropyKernel<BF16> row_kernel(const Tier& tier, BF16) { return tier.rows_bf16; }

template <class T>
static inline const Kernels<T>& kernels_of(const Tier& tier) {
  if constexpr (sizeof(T) == 4) {
    return tier.f32;
  } else {
    return tier.f64;
  }
}

static inline SplitKernel<F16> split_kernel(const Tier& tier, F16) { return tier.split_f16; }
static inline SplitKernel<BF16> split_kernel(const Tier& tier, BF16) { return tier.split_bf16; }
template <class T>
static inline SplitKernel<T> split_kernel(const Tier& tier, T) {
  return kernels_of<T>(tier).split;
}

// Sums over a row are closed after so many elements: pieces that threads share out where there are
// fewer rows than threads.
constexpr size_t kRowPart = size_t(1) << 14;
static inline size_t row_parts(size_t classes) { return (classes + kRowPart - 1) / kRowPart; }

// Scratch of a kernel call: room for one chunk, then whole rows, each with room for its last cache
// line to be filled up. The row kernel keeps one row, the dense kernel two; for the losses alone
// they keep one less. softmax keeps one, for more than one row.
constexpr size_t kScratchChunk = 512;
static inline size_t scratch_row(size_t classes) { return (classes + 128) / 64 * 64; }
static inline size_t scratch_elements(size_t classes, size_t rows) {
  return kScratchChunk + rows * scratch_row(classes);
}

// Of a row in parts: the sums of each, what makes the gradient, a chunk and the row.
constexpr size_t kPartBytes = 512;
static inline size_t split_scratch(size_t classes, size_t size, bool gradient) {
  return (row_parts(classes) + 1) * kPartBytes / size + scratch_elements(classes, gradient ? 1 : 0);
}

// TMP
constexpr size_t kColumnRows = 128;
constexpr size_t kColumnRowsLeast = 64;
constexpr size_t kColumnBytes = size_t(1) << 20, kColumnBytesMost = size_t(1) << 22;
static inline size_t column_segment(size_t classes, size_t size) {
  size_t n = kColumnRows;
  while (n > kColumnRowsLeast && n * classes * size > kColumnBytes) n /= 2;
  while (n > 16 && n * classes * size > kColumnBytesMost) n /= 2;
  return n;
}
static inline size_t column_scratch(size_t classes, size_t size, bool gradient) {
  const size_t exps = gradient ? classes * column_segment(classes, size) : 0;
  return scratch_elements(classes, 1) + exps;
}

// The group kernel takes rows of about kGroupElements elements at a time, a multiple of 16.
// Its scratch: the group and a copy of it, a row, an index for 16 rows, and at most 18 numbers a
// row.
constexpr size_t kGroupElements = 1024, kGroupPadding = 64;
static inline size_t group_rows(size_t classes) {
  const size_t rows = kGroupElements / classes / 16 * 16;
  return rows ? rows : 16;
}
template <class T>
static inline size_t group_scratch_elements(size_t classes) {
  const size_t rows = group_rows(classes);
  return kScratchChunk + 2 * rows * classes + 17 * classes + 18 * rows * (8 / sizeof(T)) +
         20 * kGroupPadding;
}
// For dense targets also: masses, their products and a copy of probabilities; three rows, of
// which one is in float64; and five numbers a row.
template <class T>
static inline size_t dense_group_scratch(size_t classes) {
  const size_t rows = group_rows(classes);
  return group_scratch_elements<T>(classes) + 3 * rows * classes + (2 + 8 / sizeof(T)) * classes +
         5 * rows * (8 / sizeof(T)) + 12 * kGroupPadding;
}

}  // namespace xentropy
