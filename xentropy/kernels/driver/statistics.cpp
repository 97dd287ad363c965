// One call of the statistics of rows, chunk by chunk.
#include <math.h>

#include "driver/choose.h"
#include "driver/guard.h"
#include "driver/softcap.h"

namespace xentropy {
namespace {

template <class S>
struct StatisticsWorkspace {
  bool direct;
  size_t rows;  // of a block
  StatisticsKernel<S> kernel;
  GuardedMemory kernel_memory;
  S* staged;
  int64_t *labels, *at;
  double* log_prob;
  StatisticsRows to;

  StatisticsWorkspace(const Tier& tier, const StatisticsCall& c, Arena& arena) {
    const size_t C = c.rows.terms.classes;
    direct = is_direct<S>(c);
    rows = direct ? kBlockRows : staged_rows(C, scattered(c.rows.logits));
    rows = smaller(rows, smaller(c.rows.rows, chunk_rows(c.rows.rows, C)));
    rows = rows_of_index(rows, c.index);
    kernel = choose_kernel<S>(tier, c);
    kernel_memory = GuardedMemory(kernel.workspace_bytes(C), arena);
    staged = direct ? nullptr : take<S>(arena, rows * C);
    labels = take<int64_t>(arena, rows);
    const size_t selected = c.index.data ? rows * c.index.classes.size() : 0;
    at = take<int64_t>(arena, selected);
    log_prob = take<double>(arena, selected);
    double** const numbers[] = {&to.lse, &to.loss, &to.entropy, &to.max_log_prob, &to.sum_squares};
    for (double** array : numbers) *array = take<double>(arena, rows);
    to.argmax = take<int64_t>(arena, rows);
    to.rank = take<int64_t>(arena, rows);
  }

  // The end of the block at r: its rows have one stride if they are accessed in place.
  size_t block_end(const StatisticsCall& c, size_t r, size_t end) const {
    const size_t n = smaller(rows, end - r);
    return r + (direct ? smaller(n, run_left(c.rows.logits, r)) : n);
  }
};

// The block of the rows [row, row + n) for the kernel.
template <class S>
StatisticsBlock<S> block_of(const Tier& tier, const StatisticsCall& c,
                            const StatisticsWorkspace<S>& w, size_t row, size_t n) {
  const Layout& x = c.rows.logits;
  const size_t C = c.rows.terms.classes;
  StatisticsBlock<S> b = {n,    C, c.rows.terms.logit_scale, w.staged, ptrdiff_t(C), w.labels,
                          w.to, 1};
  if (c.index.data) {
    read_index(tier, c.rows, c.index, row, n, w.at, w.labels);
  } else {
    read_labels(tier, c.rows, row, n, nullptr, w.labels);
    if (!c.rows.labels.data) b.labels = nullptr;
  }
  if (!c.rows.labels.data) b.to.rank = nullptr;
  if (w.direct) {
    b.x = reinterpret_cast<const S*>(x.data + x.rows.offset(row));
    b.x_stride = x.rows.step() / ptrdiff_t(sizeof(S));
    b.x_class_stride = x.classes.step() / ptrdiff_t(sizeof(S));
  } else if constexpr (sizeof(S) > 2) {
    if (c.rows.softcap != 0) {
      cap_rows<S>(tier, c.rows, row, n, w.labels, w.staged, nullptr);
    } else {
      gather_counted(tier, x, row, n, w.labels, w.staged);
    }
  }
  return b;
}

// What an ignored row has: no loss, and nothing else.
void put_ignored(const StatisticsRows& to, size_t i) {
  to.lse[i] = to.entropy[i] = to.max_log_prob[i] = to.sum_squares[i] = NAN;
  to.loss[i] = 0;
  to.argmax[i] = to.rank[i] = -1;
}

void put_numbers(void* array, bool float64, size_t row, size_t n, const double* from) {
  if (float64) {
    __builtin_memcpy(static_cast<double*>(array) + row, from, n * sizeof(double));
  } else {
    float* to = static_cast<float*>(array) + row;
    for (size_t i = 0; i < n; ++i) to[i] = float(from[i]);
  }
}

void store_statistics(const StatisticsCall& c, size_t row, size_t n, const StatisticsRows& from) {
  const auto put = [&](void* array, const double* numbers) {
    put_numbers(array, c.float64, row, n, numbers);
  };
  put(c.lse, from.lse);
  put(c.entropy, from.entropy);
  put(c.max_log_prob, from.max_log_prob);
  put(c.sum_squares, from.sum_squares);
  __builtin_memcpy(c.argmax + row, from.argmax, n * sizeof(int64_t));
  if (!c.rows.labels.data) return;
  put(c.loss, from.loss);
  __builtin_memcpy(c.rank + row, from.rank, n * sizeof(int64_t));
}

// The log-probabilities of the classes selected in row i, in the order of operations of the loss.
template <class S>
void select_row(const StatisticsBlock<S>& b, const StatisticsWorkspace<S>& w, size_t i, size_t k) {
  const S* x = b.x + ptrdiff_t(i) * b.x_stride;
  const auto at = [&](int64_t c) { return double(value_of(x[c * b.x_class_stride])); };
  for (size_t j = i * k; j < (i + 1) * k; ++j) {
    w.log_prob[j] = 0;
    if (w.at[j] == kIgnored) continue;
    const double below = at(w.to.argmax[i]) - at(w.at[j]);
    w.log_prob[j] = w.to.max_log_prob[i] - below * b.logit_scale;
  }
}

// Stores what selected_log_probs returns.
template <class S>
void store_selected(const Tier& tier, const StatisticsCall& c, const StatisticsWorkspace<S>& w,
                    const StatisticsBlock<S>& b, size_t row) {
  for (size_t i = 0; i < b.rows; ++i) {
    select_row(b, w, i, c.index.classes.size());
    if (b.labels[i] == kIgnored) w.to.lse[i] = w.to.entropy[i] = 0;
  }
  scatter_rows(tier, w.log_prob, c.log_prob, row, b.rows);
  put_numbers(c.lse, true, row, b.rows, w.to.lse);
  put_numbers(c.entropy, true, row, b.rows, w.to.entropy);
}

template <class S>
void statistics_chunk(const Tier& tier, const StatisticsCall& c, size_t begin, size_t end,
                      char* workspace) {
  Arena arena = {workspace, 0};
  const StatisticsWorkspace<S> w(tier, c, arena);
  for (size_t row = begin, next; row < end; row = next) {
    next = w.block_end(c, row, end);
    const StatisticsBlock<S> b = block_of(tier, c, w, row, next - row);
    w.kernel.run(b, w.kernel_memory.start);
    w.kernel_memory.check();
    if (c.index.data) {
      store_selected(tier, c, w, b, row);
      continue;
    }
    for (size_t i = 0; b.labels && i < b.rows; ++i) {
      if (b.labels[i] == kIgnored) put_ignored(w.to, i);
    }
    store_statistics(c, row, b.rows, w.to);
  }
}

// One step of a row that threads share: its classes are accessed in place.
template <class S>
void statistics_part(const Tier& tier, const StatisticsCall& c, Step step, size_t row, size_t part,
                     char* workspace) {
  alignas(kArenaAlign) double numbers[5][8];  // a cache line for each array, as in StatisticsRows
  alignas(kArenaAlign) int64_t classes[2][8];
  const StatisticsRows to = {numbers[0], numbers[1], numbers[2], numbers[3],
                             numbers[4], classes[0], classes[1]};
  const Layout& x = c.rows.logits;
  int64_t label;
  read_labels(tier, c.rows, row, 1, nullptr, &label);
  StatisticsBlock<S> b = {};
  b.rows = 1;
  b.classes = c.rows.terms.classes;
  b.logit_scale = c.rows.terms.logit_scale;
  b.x = reinterpret_cast<const S*>(x.data + x.rows.offset(row));
  b.labels = c.rows.labels.data ? &label : nullptr;
  b.to = to;
  if (!b.labels) b.to.rank = nullptr;
  const bool ignored = b.labels && label == kIgnored;
  if (!ignored) kernels_of(tier, S()).statistics_split.run(step, b, workspace, part);
  if (step != Step::kSettle) return;
  if (ignored) put_ignored(to, 0);
  store_statistics(c, row, 1, to);
}

}  // namespace

size_t workspace_bytes(const Tier& tier, const StatisticsCall& c) {
  return for_stored(c, [&](auto s) {
    Arena counted = {nullptr, 0};
    const StatisticsWorkspace<decltype(s)> w(tier, c, counted);
    return counted.used;
  });
}

void run_chunk(const Tier& tier, const StatisticsCall& c, size_t begin, size_t end,
               char* workspace) {
  for_stored(c, [&](auto s) { statistics_chunk<decltype(s)>(tier, c, begin, end, workspace); });
}

size_t parts_of(const StatisticsCall& c) {
  if (c.index.data) return 1;
  return for_stored(c, [&](auto s) {
    typedef decltype(s) S;
    const bool in_place = is_direct<S>(c) && !short_rows<S>(c);
    return in_place ? row_parts(c.rows.terms.classes) : size_t(1);
  });
}

size_t split_workspace_bytes(const Tier& tier, const StatisticsCall& c) {
  return for_stored(c, [&](auto s) {
    return kernels_of(tier, s).statistics_split.workspace_bytes(c.rows.terms.classes);
  });
}

void run_part(const Tier& tier, const StatisticsCall& c, Step step, size_t row, size_t part,
              char* workspace) {
  for_stored(c, [&](auto s) { statistics_part<decltype(s)>(tier, c, step, row, part, workspace); });
}

}  // namespace xentropy
