// The calls that the bindings (_kernels.pyx) make: the description of a call, and functions that
// process it chunk by chunk, or part by part, on any thread.
#pragma once
#include "driver/layout.h"
#include "tier.h"

namespace xentropy {

struct CrossEntropyCall {
  Terms terms;
  size_t rows;
  Layout logits;
  Layout gradient;  // absent: losses only
  Layout labels;    // absent: the targets are probabilities
  Layout probabilities;
  const double* weight;  // per class, or null
  Layout sample_weight;  // per row, or absent
  Layout upstream;       // d result / d loss per row, or absent: 1
  double upstream_all;   // a factor of it
  double softcap;        // of the scaled logits, or 0: none
  int64_t ignore_bits;   // the label of ignored rows, as 64 bits,
  bool ignores;          // if there is such a label
  bool streamed;
  bool float64;    // the arithmetic type
  void* row_loss;  // for the loss of every row; or null
  bool row_loss_float64;
};

// softmax or log_softmax to `out`, or a reduction to `values`.
struct SoftmaxCall {
  Result what;
  size_t rows;
  size_t classes;
  Layout x;
  Layout out;    // absent for reductions
  void* values;  // for reductions, in the arithmetic type
  double unit;   // a factor of the values
  bool streamed;
  bool float64;
};

// The statistics of rows. Of the cross entropy it takes the logits, the labels (absent: no target),
// logit_scale and softcap. Classes are int64.
struct StatisticsCall {
  CrossEntropyCall rows;
  void *lse, *loss, *entropy, *max_log_prob, *sum_squares;  // loss and rank: with labels only
  int64_t *argmax, *rank;
  bool float64;  // the numbers; or float32
  // Instead of labels: k classes a row, whose log-probabilities are wanted. A row none of whose
  // classes counts is not read, and its numbers are 0. Of the others lse and entropy are stored,
  // and all in float64.
  Layout index, log_prob;  // or absent
};

// The divergence of two softmaxes. Of the cross entropy it takes all but labels, probabilities,
// class weights and softcap.
struct DistillationCall {
  CrossEntropyCall rows;
  Layout teacher;        // logits; or absent,
  double teacher_scale;  // a factor of these
  size_t given;          // and so many classes of each row, as in SparseDistillationBlock
  const double* log_probs;
  const int64_t* index;
  double beta, log_beta;
  const double* row_betas;  // these two of each row of a sparse teacher; or null
};

// The gradient of selected log-probabilities and of the entropy, from what `StatisticsCall` has
// said of the rows. Of the cross entropy it takes the logits, the gradient, logit_scale and
// softcap.
struct LogProbGradientCall {
  CrossEntropyCall rows;
  Layout index, log_prob, on_log_prob;  // k a row; the last is the upstream gradient
  // One a row; upstream gradients may be absent: 0. A row whose on_lse is not 0 is read even if all
  // its classes are left out.
  Layout lse, entropy, on_entropy, on_lse;
  const double* on_logits;  // the upstream gradients of all scaled, capped logits; or null
};

// The result of checking the targets of a chunk.
struct TargetReport {
  ptrdiff_t bad_row;  // the first row whose label is out of range, or -1
  double weight;      // sum of the weights of rows that are not ignored
  bool non_finite;    // a sample weight is infinite or nan
};

// Rows per chunk: a function of the shape alone, so that sums over chunks have the same bits for
// any number of threads.
size_t chunk_rows(size_t rows, size_t classes);

// The workspace that each thread needs; it starts at a cache line.
size_t workspace_bytes(const Tier& tier, const CrossEntropyCall& call);
size_t workspace_bytes(const Tier& tier, const SoftmaxCall& call);
size_t workspace_bytes(const Tier& tier, const StatisticsCall& call);
size_t workspace_bytes(const Tier& tier, const DistillationCall& call);
size_t workspace_bytes(const Tier& tier, const LogProbGradientCall& call);

TargetReport inspect_targets(const Tier& tier, const CrossEntropyCall& call, size_t begin,
                             size_t end);

// Returns the sum of the losses of the rows [begin, end).
double run_chunk(const Tier& tier, const CrossEntropyCall& call, size_t begin, size_t end,
                 char* workspace);
double run_chunk(const Tier& tier, const DistillationCall& call, size_t begin, size_t end,
                 char* workspace);
void run_chunk(const Tier& tier, const SoftmaxCall& call, size_t begin, size_t end,
               char* workspace);
void run_chunk(const Tier& tier, const StatisticsCall& call, size_t begin, size_t end,
               char* workspace);
void run_chunk(const Tier& tier, const LogProbGradientCall& call, size_t begin, size_t end,
               char* workspace);

// Splitting rows, where there are fewer rows than threads. parts_of: the number of parts of each
// row (1: rows cannot be split). split_workspace_bytes: the workspace of one row, which its threads
// share. run_part: one step of one part (kCap if there is a softcap); the loss of a row goes to
// loss[row]. finish_rows stores the losses of a chunk and returns their sum. The results have the
// same bits as those of run_chunk.
size_t parts_of(const CrossEntropyCall& call);
size_t split_workspace_bytes(const Tier& tier, const CrossEntropyCall& call);
void run_part(const Tier& tier, const CrossEntropyCall& call, Step step, size_t row, size_t part,
              double* loss, char* workspace);
double finish_rows(const CrossEntropyCall& call, size_t begin, size_t end, const double* loss);

// The same of statistics; the steps are kExps and kSettle, which stores the results of the row. One
// part, which is none, where k classes are selected.
size_t parts_of(const StatisticsCall& call);
size_t split_workspace_bytes(const Tier& tier, const StatisticsCall& call);
void run_part(const Tier& tier, const StatisticsCall& call, Step step, size_t row, size_t part,
              char* workspace);

}  // namespace xentropy
