// One call of cross entropy, chunk by chunk: which kernel serves which shape. Compiled once,
// for the oldest CPU: no arithmetic on logits is here.
#include "staging.h"

namespace xentropy {
namespace {

// Has every class of a row target mass of its own?
bool is_dense(const CrossEntropyCall& c) {
  return c.probabilities.data || (c.weight && c.terms.label_smoothing != 0);
}

// The one place that chooses a kernel for elements that are stored as S.
template <class S>
CrossEntropyKernel<S> choose_kernel(const Tier& tier, const CrossEntropyCall& c) {
  if constexpr (sizeof(S) == 2) {
    return row_kernel(tier, S());
  } else {
    const Kernels<S>& k = kernels_of<S>(tier);
    return is_dense(c) ? k.dense : k.rows;
  }
}

// Are there 16-bit rows that the row kernel reads, and writes, where they lie?
template <class S>
bool direct_half(const CrossEntropyCall& c) {
  return in_place_rows<S>(c.logits) && (!c.gradient.data || in_place_rows<S>(c.gradient)) &&
         !is_dense(c) && !c.float64;
}

// The memory that one thread needs for its chunks, and how rows are cut into blocks.
template <class S>
struct Workspace {
  typedef Arithmetic<S> T;
  bool logits_direct, gradient_direct, probabilities_direct;
  size_t rows;  // of a block
  T *kernel, *probabilities;
  S *logits, *gradient;
  int64_t* labels;
  double *repeat, *upstream, *loss;
  size_t bytes;

  Workspace(const CrossEntropyCall& c, char* scratch) {
    logits_direct = in_place_rows<S>(c.logits);
    gradient_direct = !c.gradient.data || in_place_rows<S>(c.gradient);
    probabilities_direct = !c.probabilities.data || in_place_rows<T>(c.probabilities);
    const size_t C = c.terms.classes;
    const bool direct = logits_direct && gradient_direct && probabilities_direct;
    const bool any_scattered =
        scattered(c.logits) || scattered(c.gradient) || scattered(c.probabilities);
    rows = direct ? kBlockRows : staged_rows(C, any_scattered);
    rows = smaller(rows, smaller(c.rows, chunk_rows(c.rows, C)));
    Arena arena(scratch);
    kernel = arena.take<T>(scratch_elements(C, (c.gradient.data ? 1 : 0) + (is_dense(c) ? 1 : 0)));
    logits = logits_direct ? nullptr : arena.take<S>(rows * C);
    gradient = nullptr;  // staged logits are overwritten by their gradient: kernels allow that
    if (!gradient_direct) gradient = logits_direct ? arena.take<S>(rows * C) : logits;
    probabilities = probabilities_direct ? nullptr : arena.take<T>(rows * C);
    labels = arena.take<int64_t>(rows);
    loss = arena.take<double>(rows);
    repeat = c.repeat.data ? arena.take<double>(rows) : nullptr;
    upstream = c.upstream.data ? arena.take<double>(rows) : nullptr;
    bytes = arena.used();
  }

  // How many rows from r on have one stride each in every array that is read directly.
  size_t block_end(const CrossEntropyCall& c, size_t r, size_t end) const {
    size_t n = smaller(rows, end - r);
    const auto cut = [&](const Layout& a, bool direct) {
      if (a.data && direct) n = smaller(n, a.rows.run() - r % a.rows.run());
    };
    cut(c.logits, logits_direct);
    cut(c.gradient, gradient_direct);
    cut(c.probabilities, probabilities_direct);
    return r + n;
  }
};

// Labels of a block for the kernel. They were checked before; should another thread have
// changed one since, its row is left out rather than memory beyond the classes touched.
void read_labels(const CrossEntropyCall& c, size_t row, size_t n, const double* repeat,
                 int64_t* labels) {
  for (size_t i = 0; i < n; ++i) labels[i] = 0;
  for_labels(c.labels, row, row + n, [&](size_t r, int64_t label) {
    const bool ignored = c.ignores && label == c.ignore_bits;
    labels[r - row] = ignored || uint64_t(label) >= c.terms.classes ? kIgnored : label;
    return true;
  });
  for (size_t i = 0; repeat && i < n; ++i) {
    if (repeat[i] == 0) labels[i] = kIgnored;
  }
}

double store_losses(const CrossEntropyCall& c, size_t row, size_t n, const double* loss,
                    double sum) {
  for (size_t i = 0; i < n; ++i) sum += loss[i];
  if (!c.row_loss) return sum;
  for (size_t i = 0; i < n; ++i) {
    if (c.row_loss_float64) {
      static_cast<double*>(c.row_loss)[row + i] = loss[i];
    } else {
      static_cast<float*>(c.row_loss)[row + i] = float(loss[i]);
    }
  }
  return sum;
}

// Where the rows of a block are for the kernel: in the array, or gathered in scratch.
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

template <class S>
double cross_entropy_chunk(const Tier& tier, const CrossEntropyCall& c, size_t begin, size_t end,
                           char* scratch) {
  const Workspace<S> w(c, scratch);
  const CrossEntropyKernel<S> kernel = choose_kernel<S>(tier, c);
  double sum = 0;
  for (size_t row = begin, next; row < end; row = next) {
    next = w.block_end(c, row, end);
    const size_t n = next - row;
    Block<S> b = {};
    b.rows = n;
    b.labels = w.labels;
    b.loss = w.loss;
    b.weight = c.weight;
    b.repeat = w.repeat;
    b.upstream = w.upstream;
    b.upstream_all = c.upstream_all;
    if (w.repeat) gather(c.repeat, row, n, w.repeat);
    if (w.upstream) gather(c.upstream, row, n, w.upstream);
    read_labels(c, row, n, w.repeat, w.labels);
    b.logits =
        rows_of(tier, c.logits, w.logits_direct, row, n, w.labels, w.logits, &b.logits_stride);
    if (c.probabilities.data) {
      b.probabilities = rows_of(tier, c.probabilities, w.probabilities_direct, row, n, w.labels,
                                w.probabilities, &b.probabilities_stride);
    }
    if (c.gradient.data && w.gradient_direct) {
      b.gradient_stride = c.gradient.rows.step() / ptrdiff_t(sizeof(S));
      b.gradient = reinterpret_cast<S*>(c.gradient.data + c.gradient.rows.offset(row));
    } else if (c.gradient.data) {
      b.gradient_stride = ptrdiff_t(c.terms.classes);
      b.gradient = w.gradient;
    }
    kernel(c.terms, b, w.kernel, c.streamed && w.gradient_direct);
    if constexpr (sizeof(S) > 2) {
      if (!w.gradient_direct) scatter_rows(tier, w.gradient, c.gradient, row, n);
    }
    sum = store_losses(c, row, n, w.loss, sum);
  }
  return sum;
}

// visit(S()) with the type in which the kernel finds the logits.
template <class Visit>
auto for_stored(const CrossEntropyCall& c, Visit visit) {
  if (c.float64) return visit(double());
  if (direct_half<F16>(c)) return visit(F16());
  if (direct_half<BF16>(c)) return visit(BF16());
  return visit(float());
}

}  // namespace

size_t scratch_bytes(const CrossEntropyCall& c) {
  return for_stored(c, [&](auto s) { return Workspace<decltype(s)>(c, nullptr).bytes; });
}

TargetReport inspect_targets(const CrossEntropyCall& c, size_t begin, size_t end) {
  TargetReport report = {-1, 0};
  const auto repeat = [&](size_t row) {
    double value = 1;
    if (c.repeat.data) gather(c.repeat, row, 1, &value);
    return value;
  };
  for_labels(c.labels, begin, end, [&](size_t row, int64_t label) {
    if (c.ignores && label == c.ignore_bits) return true;
    if (uint64_t(label) >= c.terms.classes) {
      report.bad_row = ptrdiff_t(row);
      return false;
    }
    report.weight += repeat(row) * (c.weight ? c.weight[label] : 1);
    return true;
  });
  if (c.probabilities.data) {
    for (size_t row = begin; row < end; ++row) report.weight += repeat(row);
  }
  return report;
}

double run_chunk(const Tier& tier, const CrossEntropyCall& c, size_t begin, size_t end,
                 char* scratch) {
  return for_stored(
      c, [&](auto s) { return cross_entropy_chunk<decltype(s)>(tier, c, begin, end, scratch); });
}

}  // namespace xentropy
