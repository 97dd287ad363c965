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
  const double* weight;         // per class, or null
  const double* sample_weight;  // sample weight per row, or null
  const double* upstream;       // d result / d loss per row, or null: upstream_all
  double upstream_all;
  double* loss;  // cache lines: group kernels write whole vectors, of which the end may not count
};

// A kernel and the bytes of its workspace, which starts at a cache line. What the slots of a kind
// have in common is their signature; `streamed` asks for non-temporal stores of the gradient.
template <class S>
struct CrossEntropyKernel {
  void (*run)(const Terms&, const Block<S>&, char* workspace, bool streamed);
  size_t (*workspace_bytes)(size_t classes, bool gradient);
};

// One row by several threads, step by step: kExps of all parts, kSettle once (`part` is 0),
// kGradient of all parts. The block has one row, with class indices, class axis contiguous.
enum class Step { kExps, kSettle, kGradient };
template <class S>
struct SplitKernel {
  void (*run)(Step, const Terms&, const Block<S>&, char* workspace, size_t part, bool streamed);
  size_t (*workspace_bytes)(size_t classes, bool gradient);
};

// What the softmax family writes of every row.
enum class Result { kSoftmax, kLogSoftmax, kLogSumExp, kEntropy, kTargetEntropy };

// Of kTargetEntropy, where the rows are probabilities, driver/softmax.cpp takes care.
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
struct SoftmaxKernel {
  void (*run)(const SoftmaxBlock<T>&, char* workspace, bool streamed);
  size_t (*workspace_bytes)(Result what, size_t classes, size_t rows);  // at most so many rows
};

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

// Of a 16-bit type: all but long rows of class indices is widened into scratch for the kernels of
// float32, and narrowed on the way out.
template <class S>
struct HalfKernels {
  CrossEntropyKernel<S> rows;
  SplitKernel<S> split;
  Widen widen;
  Narrow narrow;
};

struct Tier {
  const char* name;
  Kernels<float> f32;
  Kernels<double> f64;
  HalfKernels<F16> f16;
  HalfKernels<BF16> bf16;
  CountLabels count_labels;
  MarkLabels mark_labels;  // `to` may be `label`
};

// The kernels for elements that are stored as S; the second argument is any S.
static inline const Kernels<float>& kernels_of(const Tier& tier, float) { return tier.f32; }
static inline const Kernels<double>& kernels_of(const Tier& tier, double) { return tier.f64; }
static inline const HalfKernels<F16>& kernels_of(const Tier& tier, F16) { return tier.f16; }
static inline const HalfKernels<BF16>& kernels_of(const Tier& tier, BF16) { return tier.bf16; }

// Sums over a row are closed after so many elements: pieces that threads share out where there are
// fewer rows than threads.
constexpr size_t kRowPart = size_t(1) << 14;
static inline size_t row_parts(size_t classes) { return (classes + kRowPart - 1) / kRowPart; }

}  // namespace xentropy
