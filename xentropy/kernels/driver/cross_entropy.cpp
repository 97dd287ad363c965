// One cross-entropy call, chunk by chunk. Compiled once, for the oldest CPU: this file does no
// arithmetic on logits.
#include "driver/choose.h"
#include "driver/guard.h"
#include "driver/softcap.h"

namespace xentropy {
namespace {

// The memory that one thread needs for its chunks, and the division of rows into blocks.
template <class S>
struct Workspace {
  typedef Arithmetic<S> T;
  bool columns, capped, logits_direct, gradient_direct, probabilities_direct;
  size_t rows;           // of a block
  size_t staged_stride;  // between rows in scratch; for columns, between classes
  CrossEntropyKernel<S> kernel;
  GuardedMemory kernel_memory;
  T* probabilities;
  S *logits, *gradient;
  S* slope;  // of the softcap
  int64_t* labels;
  double *sample_weight, *upstream, *loss;

  Workspace(const Tier& tier, const CrossEntropyCall& c, Arena& arena) {
    columns = uses_columns<S>(c);
    capped = c.softcap != 0;
    logits_direct = !capped && is_direct<S>(c, c.logits);
    gradient_direct = !c.gradient.data || (!capped && is_direct<S>(c, c.gradient));
    probabilities_direct = is_direct<T>(c, c.probabilities);
    const size_t C = c.terms.classes;
    const bool direct = logits_direct && gradient_direct && probabilities_direct;
    const bool any_scattered =
        scattered(c.logits) || scattered(c.gradient) || scattered(c.probabilities);
    rows = direct ? kBlockRows : columns ? staged_columns(C) : staged_rows(C, any_scattered);
    rows = smaller(rows, smaller(c.rows, chunk_rows(c.rows, C)));
    staged_stride = columns ? rows : C;
    kernel = choose_kernel<S>(tier, c);
    kernel_memory = GuardedMemory(kernel.workspace_bytes(C, c.gradient.data), arena);
    logits = logits_direct ? nullptr : take<S>(arena, rows * C);
    gradient = nullptr;  // staged logits are overwritten by their gradient: kernels allow that
    if (!gradient_direct) gradient = logits_direct ? take<S>(arena, rows * C) : logits;
    slope = capped && c.gradient.data ? take<S>(arena, rows * C) : nullptr;
    probabilities = probabilities_direct ? nullptr : take<T>(arena, rows * C);
    labels = take<int64_t>(arena, rows);
    loss = take<double>(arena, rows);
    sample_weight = c.sample_weight.data ? take<double>(arena, rows) : nullptr;
    upstream = c.upstream.data ? take<double>(arena, rows) : nullptr;
  }

  // The end of the block at r: its rows have one stride in every array that is accessed in place.
  size_t block_end(const CrossEntropyCall& c, size_t r, size_t end) const {
    size_t n = smaller(rows, end - r);
    const auto cut = [&](const Layout& a, bool direct) {
      if (a.data && direct) n = smaller(n, run_left(a, r));
    };
    cut(c.logits, logits_direct);
    cut(c.gradient, gradient_direct);
    cut(c.probabilities, probabilities_direct);
    return r + n;
  }
};

// The address of the rows of a block for the kernel: in the array, or gathered into scratch.
template <class T>
const T* rows_of(const Tier& tier, const Layout& a, bool direct, size_t row, size_t n,
                 const int64_t* labels, T* scratch, ptrdiff_t* stride) {
  if (direct) {
    *stride = a.rows.step() / ptrdiff_t(sizeof(T));
    return reinterpret_cast<const T*>(a.data + a.rows.offset(row));
  }
  *stride = ptrdiff_t(a.classes.size());
  if constexpr (sizeof(T) > 2) gather_counted(tier, a, row, n, labels, scratch);
  return scratch;
}

// The same for the column kernel.
template <class T>
const T* columns_of(const Tier& tier, const Layout& a, bool direct, size_t row, size_t n,
                    size_t staged_stride, T* scratch, ptrdiff_t* class_stride) {
  if (direct) {
    *class_stride = a.classes.step() / ptrdiff_t(sizeof(T));
    return reinterpret_cast<const T*>(a.data + a.rows.offset(row));
  }
  *class_stride = ptrdiff_t(staged_stride);
  if constexpr (sizeof(T) > 2) gather_columns(tier, a, row, n, scratch, staged_stride);
  return scratch;
}

template <class T>
void cap_block(const Tier& tier, const CrossEntropyCall& c, const Workspace<T>& w, size_t row,
               size_t n) {
  if (w.columns) return cap_columns(tier, c, row, n, w.labels, w.logits, w.slope, w.staged_stride);
  cap_rows(tier, c, row, n, w.labels, w.logits, w.slope);
}

// Sets the address of the logits of a block.
template <class S>
void locate_logits(const Tier& tier, const CrossEntropyCall& c, const Workspace<S>& w, size_t row,
                   Block<S>* b) {
  if (w.capped) {
    b->logits = w.logits;
    b->logits_stride = b->logits_class_stride = ptrdiff_t(w.staged_stride);
    if constexpr (sizeof(S) > 2) cap_block(tier, c, w, row, b->rows);
  } else if (w.columns) {
    b->logits = columns_of(tier, c.logits, w.logits_direct, row, b->rows, w.staged_stride, w.logits,
                           &b->logits_class_stride);
  } else {
    b->logits = rows_of(tier, c.logits, w.logits_direct, row, b->rows, w.labels, w.logits,
                        &b->logits_stride);
  }
}

// Sets the address of the gradient of a block: in the array, or in scratch.
template <class S>
void locate_gradient(const CrossEntropyCall& c, const Workspace<S>& w, size_t row, Block<S>* b) {
  if (w.gradient_direct) {
    b->gradient_stride = c.gradient.rows.step() / ptrdiff_t(sizeof(S));
    b->gradient_class_stride = c.gradient.classes.step() / ptrdiff_t(sizeof(S));
    b->gradient = reinterpret_cast<S*>(c.gradient.data + c.gradient.rows.offset(row));
  } else {
    b->gradient_stride = b->gradient_class_stride = ptrdiff_t(w.staged_stride);
    b->gradient = w.gradient;
  }
}

template <class S>
void scatter_gradient(const Tier& tier, const CrossEntropyCall& c, const Workspace<S>& w,
                      size_t row, size_t n) {
  if constexpr (sizeof(S) > 2) {
    if (w.capped && w.columns) {
      uncap_columns(tier, c, row, n, w.gradient, w.slope, w.staged_stride);
    } else if (w.capped) {
      uncap_rows(tier, c, row, n, w.gradient, w.slope);
    } else if (w.columns) {
      scatter_columns(tier, w.gradient, w.staged_stride, c.gradient, row, n);
    } else {
      scatter_rows(tier, w.gradient, c.gradient, row, n);
    }
  }
}

// The block of the rows [row, row + n) for the kernel.
template <class S>
Block<S> block_of(const Tier& tier, const CrossEntropyCall& c, const Workspace<S>& w, size_t row,
                  size_t n) {
  Block<S> b = {};
  b.rows = n;
  b.labels = w.labels;
  b.loss = w.loss;
  b.weight = c.weight;
  b.upstream_all = c.upstream_all;
  if (w.sample_weight) b.sample_weight = row_values(c.sample_weight, row, n, w.sample_weight);
  if (w.upstream) b.upstream = row_values(c.upstream, row, n, w.upstream);
  read_labels(tier, c, row, n, b.sample_weight, w.labels);
  locate_logits(tier, c, w, row, &b);
  if (c.probabilities.data) {
    b.probabilities = rows_of(tier, c.probabilities, w.probabilities_direct, row, n, w.labels,
                              w.probabilities, &b.probabilities_stride);
  }
  if (c.gradient.data) locate_gradient(c, w, row, &b);
  return b;
}

template <class S>
double cross_entropy_chunk(const Tier& tier, const CrossEntropyCall& c, size_t begin, size_t end,
                           char* workspace) {
  Arena arena = {workspace, 0};
  const Workspace<S> w(tier, c, arena);
  SumOverRows sum;
  for (size_t row = begin, next; row < end; row = next) {
    next = w.block_end(c, row, end);
    const Block<S> b = block_of(tier, c, w, row, next - row);
    w.kernel.run(c.terms, b, w.kernel_memory.start, c.streamed && w.gradient_direct);
    w.kernel_memory.check();
    if (!w.gradient_direct) scatter_gradient(tier, c, w, row, b.rows);
    sum.add(row, b.rows, w.loss);
    store_losses(c, row, b.rows, w.loss);
  }
  return sum.total();
}

}  // namespace

size_t workspace_bytes(const Tier& tier, const CrossEntropyCall& c) {
  return for_stored(c, [&](auto s) {
    Arena counted = {nullptr, 0};
    const Workspace<decltype(s)> w(tier, c, counted);
    return counted.used;
  });
}

double run_chunk(const Tier& tier, const CrossEntropyCall& c, size_t begin, size_t end,
                 char* workspace) {
  return for_stored(
      c, [&](auto s) { return cross_entropy_chunk<decltype(s)>(tier, c, begin, end, workspace); });
}

}  // namespace xentropy
