// One call, in chunks of rows: what the doorway (_kernels.pyx) hands to the threads.
#pragma once
#include "driver/layout.h"
#include "tier.h"

namespace xentropy {

struct CrossEntropyCall {
  Terms terms;
  size_t rows;
  Layout logits;
  Layout gradient;  // absent: the losses alone
  Layout labels;    // absent: probabilities are given
  Layout probabilities;
  const double* weight;  // per class, or null
  Layout sample_weight;  // sample weight of every row; or absent
  Layout upstream;       // d result / d loss of every row; or absent: 1
  double upstream_all;   // multiplies it
  int64_t ignore_bits;   // the 64 bits of a label that does not count
  bool ignores;          // there is such a label
  bool streamed;
  bool float64;    // the arithmetic type
  void* row_loss;  // where each loss goes; or null
  bool row_loss_float64;
};

// softmax or log_softmax into `out`, or a reduction into `values`.
struct SoftmaxCall {
  Result what;
  size_t rows;
  size_t classes;
  Layout x;
  Layout out;    // absent for the reductions
  void* values;  // of the reductions, in the arithmetic type
  double unit;   // multiplies them
  bool streamed;
  bool float64;
};

// What a look at the targets before the call says of a chunk.
struct TargetReport {
  ptrdiff_t bad_row;  // the first whose label is out of range; -1 if all are good
  double weight;      // summed weight of the rows that count
  bool non_finite;    // a sample weight is infinite or nan
};

// Rows per chunk: a function of the shape alone, so that sums over chunks have the same
// bits for any number of threads.
size_t chunk_rows(size_t rows, size_t classes);

// What one thread needs for its chunks: memory that starts at a cache line.
size_t workspace_bytes(const Tier& tier, const CrossEntropyCall& call);
size_t workspace_bytes(const Tier& tier, const SoftmaxCall& call);

TargetReport inspect_targets(const Tier& tier, const CrossEntropyCall& call, size_t begin,
                             size_t end);

// Returns the sum of the losses of rows [begin, end).
double run_chunk(const Tier& tier, const CrossEntropyCall& call, size_t begin, size_t end,
                 char* workspace);
void run_chunk(const Tier& tier, const SoftmaxCall& call, size_t begin, size_t end,
               char* workspace);

// Fewer rows than threads: into how many parts these may cut each row (1: not at all), the
// workspace that they share, and one step of one part. The loss of a row goes to loss[row]; what
// becomes of the losses of a chunk is up to finish_rows, which returns their sum. The same bits as
// run_chunk.
size_t parts_of(const CrossEntropyCall& call);
size_t split_workspace_bytes(const Tier& tier, const CrossEntropyCall& call);
void run_part(const Tier& tier, const CrossEntropyCall& call, Step step, size_t row, size_t part,
              double* loss, char* workspace);
double finish_rows(const CrossEntropyCall& call, size_t begin, size_t end, const double* loss);

}  // namespace xentropy
