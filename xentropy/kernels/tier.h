// The interface of a tier (an instruction-set level): the table of its kernels, and the structs
// that they take.
//
// Precision policy: float16, bfloat16 and float32 logits are computed in float32, float64 logits in
// float64. Sums over classes are accumulated in float64, after at most four terms have been added
// in the arithmetic type. Losses leave the kernels in float64.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "half.h"

namespace xentropy {

// The label of an ignored row, whose logits are not read.
constexpr int64_t kIgnored = -1;

// The options of a call that are the same for all rows.
struct Terms {
  size_t classes;
  double label_smoothing;
  double z_loss;
  double logit_scale;
  double unit;     // 1 / log(base)
  double divisor;  // of the gradients: the denominator of the mean
};

// The rows of one kernel call. Strides are in elements. S is the type in memory, T the arithmetic
// type.
template <class S>
struct Block {
  typedef Arithmetic<S> T;
  size_t rows;
  const S* logits;
  ptrdiff_t logits_stride;
  S* gradient;  // null: losses only; equal to logits: in place
  ptrdiff_t gradient_stride;
  const int64_t* labels;   // kIgnored for ignored rows
  const T* probabilities;  // null: the labels are the targets
  ptrdiff_t probabilities_stride;
  // Column kernel only: the rows are adjacent (the strides above are 1), the class axis has these.
  ptrdiff_t logits_class_stride, gradient_class_stride;
  const double* weight;         // per class, or null
  const double* sample_weight;  // per row, or null
  const double* upstream;       // d result / d loss per row, or null: 1
  double upstream_all;          // a factor of it
  double* loss;  // whole cache lines: group kernels store whole vectors, also past the last row
};

// A kernel and the size of its workspace, which starts at a cache line. `streamed` selects
// non-temporal stores of the gradient.
template <class S>
struct CrossEntropyKernel {
  void (*run)(const Terms&, const Block<S>&, char* workspace, bool streamed);
  size_t (*workspace_bytes)(size_t classes, bool gradient);
};

// The row kernel in steps, so that several threads can share one row: kExps for every part, then
// kSettle once (part 0), then kGradient for every part. Before them, kCap caps every part: it is
// the driver's (driver/split.cpp), and no kernel sees it. The block has one row with a class index
// and a contiguous class axis.
enum class Step { kCap, kExps, kSettle, kGradient };
template <class S>
struct SplitKernel {
  void (*run)(Step, const Terms&, const Block<S>&, char* workspace, size_t part, bool streamed);
  size_t (*workspace_bytes)(size_t classes, bool gradient);
};

// The functions of the softmax family.
enum class Result { kSoftmax, kLogSoftmax, kLogSumExp, kEntropy, kTargetEntropy };

// driver/softmax.cpp computes kTargetEntropy, whose rows are probabilities, without a kernel.
template <class T>
struct SoftmaxBlock {
  Result what;
  size_t rows, classes;
  const T* x;
  ptrdiff_t x_stride;  // in elements
  T* out;              // softmax and log_softmax; equal to x: in place
  ptrdiff_t out_stride;
  double* value;  // reductions: one per row
};
template <class T>
struct SoftmaxKernel {
  void (*run)(const SoftmaxBlock<T>&, char* workspace, bool streamed);
  size_t (*workspace_bytes)(Result what, size_t classes, size_t rows);  // up to `rows` rows
};

// Where the statistics of rows go: one number per row each, in whole cache lines, because group
// kernels store whole vectors. Logits are scaled by logit_scale.
struct StatisticsRows {
  double *lse, *loss, *entropy, *max_log_prob, *sum_squares;
  int64_t *argmax, *rank;  // rank: null without labels, or if it is not wanted
};

// Rows whose statistics are wanted. Ignored rows are not read; their numbers are arbitrary.
template <class S>
struct StatisticsBlock {
  size_t rows, classes;
  double logit_scale;
  const S* x;
  ptrdiff_t x_stride;     // in elements
  const int64_t* labels;  // kIgnored for ignored rows; null: no target, and the loss is arbitrary
  StatisticsRows to;
  ptrdiff_t x_class_stride;  // column kernel only: the rows are adjacent
};
template <class S>
struct StatisticsKernel {
  void (*run)(const StatisticsBlock<S>&, char* workspace);
  size_t (*workspace_bytes)(size_t classes);
};

// The same for one long row in steps, so that several threads can share it: kExps for every part,
// then kSettle once (part 0).
template <class S>
struct StatisticsSplit {
  void (*run)(Step, const StatisticsBlock<S>&, char* workspace, size_t part);
  size_t (*workspace_bytes)(size_t classes);
};

// The divergence of softmax(teacher_scale * teacher) and softmax(logit_scale * x), and its gradient
// in x: common/divergence.h.
template <class T>
struct DistillationBlock {
  size_t rows, classes;
  double beta, log_beta;
  double logit_scale, teacher_scale;
  const T *x, *teacher;
  ptrdiff_t x_stride, teacher_stride;  // in elements
  T* gradient;                         // null: losses only; equal to x: in place
  ptrdiff_t gradient_stride;
  const int64_t* labels;  // kIgnored for rows that are not read
  const double* factor;   // of the gradient, per row
  double* loss;           // labels, factor, loss: whole cache lines, as group kernels take vectors
};
template <class T>
struct DistillationKernel {
  void (*run)(const DistillationBlock<T>&, char* workspace, bool streamed);
  size_t (*workspace_bytes)(size_t classes);
};

// The same for a teacher that gives some classes of each row, and that of all others together.
template <class T>
struct SparseDistillationBlock {
  DistillationBlock<T> rows;  // without a teacher
  size_t given;
  const double* log_probs;  // given + 1 per row: the last is that of the other classes
  const int64_t* index;     // `given` different classes per row
  const double* betas;      // beta and log_beta per row; null: those of `rows`
};
template <class T>
struct SparseDistillationKernel {
  void (*run)(const SparseDistillationBlock<T>&, char* workspace, bool streamed);
  size_t (*workspace_bytes)(size_t classes, size_t given);
};

// Rows whose log-sum-exp is known. With x scaled, p_c = exp(x_c - lse), y_j the classes selected,
// g_j the upstream gradients of their log p, G the sum of those less that of the lse, and g that of
// the entropy H:
//
//     gradient_c = logit_scale (sum_{j: y_j = c} g_j - G p_c - g p_c (log p_c + H))
struct LseSelection {
  double logit_scale;
  const int64_t* labels;  // one a row; kIgnored: gradient 0, the logits are not read
  const double* lse;      // not finite: the row has no softmax, and its gradient is nan
  const double *entropy, *on_entropy, *on_lse;
  size_t entries;     // classes selected, per row
  const int64_t* at;  // the classes; kIgnored: none
  const double *log_prob, *on_log_prob;
  double* value;  // becomes the gradients at the classes
};
template <class S>
struct LseGradientBlock {
  size_t rows, classes;
  const S* x;
  ptrdiff_t x_stride;  // in elements
  S* gradient;         // equal to x: in place
  ptrdiff_t gradient_stride;
  LseSelection of_rows;
};
template <class S>
struct LseGradientKernel {
  void (*run)(const LseGradientBlock<S>&, char* workspace, bool streamed);
  size_t (*workspace_bytes)(size_t classes);
};

// The softcap of logits: x -> cap * tanh(x / cap). `inverse` is 1 / cap.
struct Softcap {
  double cap, inverse;
};

// The two passes of the softcap around a kernel, over n contiguous elements. `cap` caps them, and
// keeps the slope 1 - tanh(x / cap)^2 of each unless `slope` is null; `to` may be `x`.
// `times_slope` multiplies the gradient by it; `to` may be `gradient`.
template <class S>
struct SoftcapKernel {
  typedef Arithmetic<S> T;
  void (*cap)(const Softcap&, const S* x, size_t n, T* to, T* slope);
  void (*times_slope)(const T* gradient, const T* slope, size_t n, S* to, bool streamed);
};

// Conversion of n contiguous elements of a 16-bit type, at any address, to and from float32.
using Widen = void (*)(const char* from, size_t n, float* to);
using Narrow = void (*)(const float* from, size_t n, char* to);

// Which labels are valid, and which are ignored.
struct LabelRule {
  uint64_t last;    // the largest class index
  int64_t ignored;  // the label of ignored rows, as 64 bits,
  bool ignores;     // if there is such a label
};
struct LabelCount {
  size_t counted;  // rows that are not ignored, with valid labels or not
  bool wrong;      // is one of these labels out of range?
};
using CountLabels = LabelCount (*)(const LabelRule&, const int64_t* label, size_t n);
using MarkLabels = void (*)(const LabelRule&, const int64_t* label, size_t n, int64_t* to);

template <class T>
struct Kernels {
  CrossEntropyKernel<T> rows;             // class indices, class axis contiguous
  SplitKernel<T> split;                   // the same, one row in parts
  CrossEntropyKernel<T> dense;            // every class of a row has a target mass
  CrossEntropyKernel<T> groups;           // class indices, short adjacent rows, many at a time
  CrossEntropyKernel<T> dense_groups;     // dense targets, short adjacent rows
  CrossEntropyKernel<T> columns;          // class indices, class axis strided, rows adjacent
  SoftmaxKernel<T> softmax;               // class axis contiguous
  SoftmaxKernel<T> softmax_groups;        // the same, short adjacent rows
  StatisticsKernel<T> statistics;         // class axis contiguous
  StatisticsKernel<T> statistics_groups;  // the same, short adjacent rows
  // Short rows, class axis strided, rows adjacent.
  StatisticsKernel<T> statistics_columns;
  StatisticsSplit<T> statistics_split;        // one long row in parts
  SoftcapKernel<T> softcap;                   // any elements
  DistillationKernel<T> distillation;         // two rows of logits, class axis contiguous
  DistillationKernel<T> distillation_groups;  // the same, short adjacent rows
  SparseDistillationKernel<T> sparse_distillation;
  LseGradientKernel<T> lse_gradient;         // class axis contiguous
  LseGradientKernel<T> lse_gradient_groups;  // short adjacent rows
};

// For a 16-bit type. Only long rows with class indices, their statistics, gradients from a given
// lse and the softcap have kernels of their own. All other input is widened into scratch for the
// float32 kernels, and their results are narrowed.
template <class S>
struct HalfKernels {
  CrossEntropyKernel<S> rows;
  SplitKernel<S> split;
  StatisticsKernel<S> statistics;
  StatisticsSplit<S> statistics_split;
  SoftcapKernel<S> softcap;
  LseGradientKernel<S> lse_gradient;
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

// The kernels for elements stored as the type of the second argument.
static inline const Kernels<float>& kernels_of(const Tier& tier, float) { return tier.f32; }
static inline const Kernels<double>& kernels_of(const Tier& tier, double) { return tier.f64; }
static inline const HalfKernels<F16>& kernels_of(const Tier& tier, F16) { return tier.f16; }
static inline const HalfKernels<BF16>& kernels_of(const Tier& tier, BF16) { return tier.bf16; }

// Elements per part of a row. The row kernel sums the exps of a row part by part, so that several
// threads can share a row where there are fewer rows than threads.
constexpr size_t kRowPart = size_t(1) << 14;
static inline size_t row_parts(size_t classes) { return (classes + kRowPart - 1) / kRowPart; }

}  // namespace xentropy
