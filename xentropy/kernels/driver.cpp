// One call of cross entropy, chunk by chunk: which kernel serves which shape. Compiled once,
// for the oldest CPU: no arithmetic on logits is here.
#include "staging.h"

namespace xentropy {
namespace {

// Has every class of a row target mass of its own?
bool is_dense(const CrossEntropyCall& c) {
  return c.probabilities.data || (c.weight && c.terms.label_smoothing != 0);
}

// The group kernel serves rows of up to so many classes. Measured on Zen 4, 4e6 elements, one
// thread, loss and gradient, in 1e9 elements a second, groups / rows:
//
//     classes           64         128        200        320        512
//     v4 float32     1.71/0.51  1.88/0.87  1.87/1.18  1.64/1.75  1.83/1.58
//     v3 float32     1.46/0.48  1.43/0.81  1.54/0.97  1.52/1.19  1.44/1.42
//     v4 float64     0.72/0.40  0.67/0.56  0.69/0.70  0.69/0.77  0.69/0.82
//     v3 float64     0.57/0.35  0.58/0.43  0.56/0.51  0.54/0.54  0.54/0.60
template <class T>
constexpr size_t kGroupClasses = sizeof(T) == 4 ? 320 : 192;

template <class T>
bool are_groups(const CrossEntropyCall& c) {
  return !is_dense(c) && c.terms.classes <= kGroupClasses<T>;
}

// Can the kernel work on this array where it lies? Groups must be adjacent rows; others pass
// through scratch, so that memory layout changes no bit.
template <class T>
bool is_direct(const CrossEntropyCall& c, const Layout& a) {
  const bool adjacent =
      a.rows.run() == 1 || a.rows.step() == ptrdiff_t(c.terms.classes * sizeof(T));
  return in_place_rows<T>(a) && (adjacent || !are_groups<T>(c));
}

// The one place that chooses a kernel.
template <class T>
CrossEntropyKernel<T> choose_kernel(const Tier& tier, const CrossEntropyCall& c) {
  const Kernels<T>& k = kernels_of<T>(tier);
  if (is_dense(c)) return k.dense;
  return are_groups<T>(c) ? k.groups : k.rows;
}

// The memory that one thread needs for its chunks, and how rows are cut into blocks.
template <class T>
struct Workspace {
  bool logits_direct, gradient_direct, probabilities_direct;
  size_t rows;  // of a block
  T *kernel, *logits, *gradient, *probabilities;
  int64_t* labels;
  double *repeat, *upstream, *loss;
  size_t bytes;

  Workspace(const CrossEntropyCall& c, char* scratch) {
    logits_direct = is_direct<T>(c, c.logits);
    gradient_direct = !c.gradient.data || is_direct<T>(c, c.gradient);
    probabilities_direct = !c.probabilities.data || in_place_rows<T>(c.probabilities);
    const size_t C = c.terms.classes;
    const bool direct = logits_direct && gradient_direct && probabilities_direct;
    const bool any_scattered =
        scattered(c.logits) || scattered(c.gradient) || scattered(c.probabilities);
    rows = direct ? kBlockRows : staged_rows(C, any_scattered);
    rows = smaller(rows, smaller(c.rows, chunk_rows(c.rows, C)));
    Arena arena(scratch);
    const size_t kept = (c.gradient.data ? 1 : 0) + (is_dense(c) ? 1 : 0);
    kernel =
        arena.take<T>(are_groups<T>(c) ? group_scratch_elements<T>(C) : scratch_elements(C, kept));
    logits = logits_direct ? nullptr : arena.take<T>(rows * C);
    gradient = nullptr;  // staged logits are overwritten by their gradient: kernels allow that
    if (!gradient_direct) gradient = logits_direct ? arena.take<T>(rows * C) : logits;
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
void read_labels(const CrossEntropyCall& c, size_t row, size_t n, const double* repeat,
                 int64_t* labels) {
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
    if (repeat[i] == 0) labels[i] = kIgnored;
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

void store_losses(const CrossEntropyCall& c, size_t row, size_t n, const double* loss) {
  if (!c.row_loss) return;
  if (c.row_loss_float64) {
    __builtin_memcpy(static_cast<double*>(c.row_loss) + row, loss, n * sizeof(double));
  } else {
    float* to = static_cast<float*>(c.row_loss) + row;
    for (size_t i = 0; i < n; ++i) to[i] = float(loss[i]);
  }
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
  gather_counted(tier, a, row, n, labels, scratch);
  return scratch;
}

template <class T>
double cross_entropy_chunk(const Tier& tier, const CrossEntropyCall& c, size_t begin, size_t end,
                           char* scratch) {
  const Workspace<T> w(c, scratch);
  const CrossEntropyKernel<T> kernel = choose_kernel<T>(tier, c);
  SumOverRows sum;
  for (size_t row = begin, next; row < end; row = next) {
    next = w.block_end(c, row, end);
    const size_t n = next - row;
    Block<T> b = {};
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
      b.gradient_stride = c.gradient.rows.step() / ptrdiff_t(sizeof(T));
      b.gradient = reinterpret_cast<T*>(c.gradient.data + c.gradient.rows.offset(row));
    } else if (c.gradient.data) {
      b.gradient_stride = ptrdiff_t(c.terms.classes);
      b.gradient = w.gradient;
    }
    kernel(c.terms, b, w.kernel, c.streamed && w.gradient_direct);
    if (c.gradient.data && !w.gradient_direct) scatter_rows(tier, w.gradient, c.gradient, row, n);
    sum.add(row, n, w.loss);
    store_losses(c, row, n, w.loss);
  }
  return sum.total();
}

// Adds weight(i, sample weight of row + i) for i < n to `sum`.
template <class Weight>
void add_weights(const CrossEntropyCall& c, size_t row, size_t n, SumOverRows& sum, Weight weight) {
  constexpr size_t kMost = 256;
  double value[kMost];
  for (size_t i = 0, m; i < n; i += m) {
    m = smaller(kMost, n - i);
    for (size_t j = 0; j < m; ++j) value[j] = 1;
    if (c.repeat.data) gather(c.repeat, row + i, m, value);
    for (size_t j = 0; j < m; ++j) value[j] = weight(i + j, value[j]);
    sum.add(row + i, m, value);
  }
}

}  // namespace

size_t scratch_bytes(const CrossEntropyCall& c) {
  return c.float64 ? Workspace<double>(c, nullptr).bytes : Workspace<float>(c, nullptr).bytes;
}

TargetReport inspect_targets(const CrossEntropyCall& c, size_t begin, size_t end) {
  TargetReport report = {-1, 0};
  const LabelCheck check(c);
  SumOverRows weights;
  for_label_runs(c.labels, begin, end, [&, check](size_t row, size_t n, auto label) {
    uint64_t counted = 0, wrong = 0;
    for (size_t i = 0; i < n; ++i) {
      const uint64_t y = label(i), counts = check.counted(y);
      counted += counts;
      wrong |= check.wrong(y) & counts;
    }
    for (size_t i = 0; wrong; ++i) {
      if ((check.wrong(label(i)) & check.counted(label(i))) == 0) continue;
      report.bad_row = ptrdiff_t(row + i);
      return false;
    }
    if (!c.weight && !c.repeat.data) report.weight += double(counted);
    if (c.weight || c.repeat.data) {
      add_weights(c, row, n, weights, [&](size_t i, double value) {
        const uint64_t y = label(i);
        return check.counted(y) ? value * (c.weight ? c.weight[y] : 1) : 0;
      });
    }
    return true;
  });
  if (c.probabilities.data && !c.repeat.data) report.weight = double(end - begin);
  if (c.probabilities.data && c.repeat.data) {
    add_weights(c, begin, end - begin, weights, [](size_t, double value) { return value; });
  }
  report.weight += weights.total();
  return report;
}

double run_chunk(const Tier& tier, const CrossEntropyCall& c, size_t begin, size_t end,
                 char* scratch) {
  return c.float64 ? cross_entropy_chunk<double>(tier, c, begin, end, scratch)
                   : cross_entropy_chunk<float>(tier, c, begin, end, scratch);
}

}  // namespace xentropy
