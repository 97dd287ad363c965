// Which kernel serves which shape, and how rows that no kernel reads as they lie pass
// through scratch. Compiled once, for the oldest CPU: no arithmetic on logits is here.
#include "driver.h"

#include "gather.h"

namespace xentropy {
namespace {

// A chunk is what one thread takes at a time: enough work to pay for the hand-out (some
// 20 us), little enough to share the batch out evenly, rows enough to keep the pipeline
// of the row kernel full.
constexpr size_t kChunkElements = size_t(1) << 16;
constexpr size_t kChunkElementsMost = size_t(1) << 20;
constexpr size_t kChunksWanted = 64;
constexpr size_t kBlockRows = 4096;  // rows of one kernel call, at most

// Rows that pass through scratch stay in the L2 cache; but 16 adjacent rows are taken
// together where the classes lie far apart, to use whole cache lines.
constexpr size_t kScratchElements = size_t(1) << 15;
constexpr size_t kScratchRowsLeast = 16;

size_t at_least_one(size_t n) { return n ? n : 1; }
size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

ptrdiff_t magnitude(ptrdiff_t stride) { return stride < 0 ? -stride : stride; }

template <class T>
constexpr DType kNative = sizeof(T) == 4 ? kF32 : kF64;

// Can a kernel of arithmetic type T read these rows where they lie?
template <class T>
bool in_place_rows(const Layout& a) {
  if (a.dtype != kNative<T> || a.swapped) return false;
  if (a.classes.ndim > 1 || (a.classes.ndim == 1 && a.classes.step() != sizeof(T))) return false;
  ptrdiff_t all = ptrdiff_t(reinterpret_cast<uintptr_t>(a.data));
  for (int d = 0; d < a.rows.ndim; ++d) all |= a.rows.stride[d];
  return all % ptrdiff_t(sizeof(T)) == 0;
}

// Rows of a block, where nothing has to pass through scratch and where something has.
size_t block_rows(const Layout& logits, size_t classes, bool direct) {
  if (direct) return kBlockRows;
  const bool scattered = magnitude(logits.rows.step()) < magnitude(logits.classes.step());
  const size_t least = scattered ? kScratchRowsLeast : 1;
  const size_t fitting = kScratchElements / classes;
  return smaller(kBlockRows, fitting > least ? fitting : least);
}

// Hands out pieces of the scratch memory, each at the start of a cache line.
class Arena {
 public:
  explicit Arena(char* start) : start_(start), used_(0) {}

  template <class T>
  T* take(size_t n) {
    T* piece = start_ ? reinterpret_cast<T*>(start_ + used_) : nullptr;
    used_ += (n * sizeof(T) + 63) / 64 * 64;
    return piece;
  }
  size_t used() const { return used_; }

 private:
  char* start_;
  size_t used_;
};

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
    logits_direct = in_place_rows<T>(c.logits);
    gradient_direct = !c.gradient.data || in_place_rows<T>(c.gradient);
    probabilities_direct = !c.probabilities.data || in_place_rows<T>(c.probabilities);
    const size_t C = c.terms.classes;
    const bool direct = logits_direct && gradient_direct && probabilities_direct;
    rows = smaller(block_rows(c.logits, C, direct), smaller(c.rows, chunk_rows(c.rows, C)));
    Arena arena(scratch);
    kernel = arena.take<T>(scratch_elements(C));
    logits = logits_direct ? nullptr : arena.take<T>(rows * C);
    gradient = gradient_direct ? nullptr : logits_direct ? arena.take<T>(rows * C) : logits;
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

bool is_half_row(const Layout& a) {
  const bool half = (a.dtype == kF16 || a.dtype == kBF16) && !a.swapped;
  return half && a.classes.ndim == 1 && a.classes.step() == 2;
}

// 16-bit rows with contiguous classes are widened and narrowed by the tier's vectors, all
// other layouts element by element.
template <class T>
void gather_rows(const Tier&, const Layout& a, size_t row, size_t n, T* to) {
  gather(a, row, n, to);
}
template <>
void gather_rows(const Tier& tier, const Layout& a, size_t row, size_t n, float* to) {
  if (!is_half_row(a)) return gather(a, row, n, to);
  const Widen widen = a.dtype == kF16 ? tier.widen_f16 : tier.widen_bf16;
  const size_t C = a.classes.size();
  for (size_t i = 0; i < n; ++i) widen(a.data + a.rows.offset(row + i), C, to + i * C);
}

template <class T>
void scatter_rows(const Tier&, const T* from, const Layout& a, size_t row, size_t n) {
  scatter(from, a, row, n);
}
template <>
void scatter_rows(const Tier& tier, const float* from, const Layout& a, size_t row, size_t n) {
  if (!is_half_row(a)) return scatter(from, a, row, n);
  const Narrow narrow = a.dtype == kF16 ? tier.narrow_f16 : tier.narrow_bf16;
  const size_t C = a.classes.size();
  for (size_t i = 0; i < n; ++i) narrow(from + i * C, C, a.data + a.rows.offset(row + i));
}

// Where the rows of a block are for the kernel: in the array, or gathered in scratch.
template <class T>
const T* rows_of(const Tier& tier, const Layout& a, bool direct, size_t row, size_t n, T* scratch,
                 ptrdiff_t* stride) {
  if (direct) {
    *stride = a.rows.step() / ptrdiff_t(sizeof(T));
    return reinterpret_cast<const T*>(a.data + a.rows.offset(row));
  }
  *stride = ptrdiff_t(a.classes.size());
  gather_rows(tier, a, row, n, scratch);
  return scratch;
}

void read_labels(const CrossEntropyCall& c, size_t row, size_t n, const double* repeat,
                 int64_t* labels) {
  for_labels(c.labels, row, row + n, [&](size_t r, int64_t label) {
    labels[r - row] = c.ignores && label == c.ignore_bits ? kIgnored : label;
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

double class_weight(const CrossEntropyCall& c, int64_t label) {
  if (!c.weight) return 1;
  return c.float64 ? static_cast<const double*>(c.weight)[label]
                   : double(static_cast<const float*>(c.weight)[label]);
}

// The one place that chooses a kernel.
template <class T>
CrossEntropyKernel<T> choose_kernel(const Tier& tier, const CrossEntropyCall& c) {
  const Kernels<T>& k = kernels_of<T>(tier);
  const bool dense = c.probabilities.data || (c.weight && c.terms.label_smoothing != 0);
  return dense ? k.dense : k.rows;
}

template <class T>
double cross_entropy_chunk(const Tier& tier, const CrossEntropyCall& c, size_t begin, size_t end,
                           char* scratch) {
  const Workspace<T> w(c, scratch);
  const CrossEntropyKernel<T> kernel = choose_kernel<T>(tier, c);
  double sum = 0;
  for (size_t row = begin, next; row < end; row = next) {
    next = w.block_end(c, row, end);
    const size_t n = next - row;
    Block<T> b = {};
    b.rows = n;
    b.labels = w.labels;
    b.loss = w.loss;
    b.weight = static_cast<const T*>(c.weight);
    b.repeat = w.repeat;
    b.upstream = w.upstream;
    b.upstream_all = c.upstream_all;
    if (w.repeat) gather(c.repeat, row, n, w.repeat);
    if (w.upstream) gather(c.upstream, row, n, w.upstream);
    read_labels(c, row, n, w.repeat, w.labels);
    b.logits = rows_of(tier, c.logits, w.logits_direct, row, n, w.logits, &b.logits_stride);
    if (c.probabilities.data) {
      b.probabilities = rows_of(tier, c.probabilities, w.probabilities_direct, row, n,
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
    sum = store_losses(c, row, n, w.loss, sum);
  }
  return sum;
}

template <class T>
struct SoftmaxWorkspace {
  bool x_direct, out_direct;
  size_t rows;
  T *kernel, *block;
  size_t bytes;

  SoftmaxWorkspace(const SoftmaxCall& c, char* scratch) {
    x_direct = in_place_rows<T>(c.x);
    out_direct = !c.out.data || in_place_rows<T>(c.out);
    rows = smaller(block_rows(c.x, c.classes, x_direct && out_direct),
                   smaller(c.rows, chunk_rows(c.rows, c.classes)));
    Arena arena(scratch);
    kernel = arena.take<T>(scratch_elements(c.classes));
    block = x_direct && out_direct ? nullptr : arena.take<T>(rows * c.classes);
    bytes = arena.used();
  }
};

template <class T>
void softmax_chunk(const Tier& tier, const SoftmaxCall& c, size_t begin, size_t end,
                   char* scratch) {
  const SoftmaxWorkspace<T> w(c, scratch);
  const SoftmaxKernel<T> kernel = kernels_of<T>(tier).softmax;
  for (size_t row = begin; row < end; row += w.rows) {
    const size_t n = smaller(w.rows, end - row);
    if (!w.x_direct) gather_rows(tier, c.x, row, n, w.block);
    for (size_t i = 0; i < n; ++i) {
      T* scratch_row = w.block + i * c.classes;
      const T* x = w.x_direct ? reinterpret_cast<const T*>(c.x.data + c.x.rows.offset(row + i))
                              : scratch_row;
      T* out = c.out.data && w.out_direct
                   ? reinterpret_cast<T*>(c.out.data + c.out.rows.offset(row + i))
                   : scratch_row;
      double value = 0;
      kernel(c.what, x, c.classes, out, w.kernel, &value);
      if (c.values) static_cast<T*>(c.values)[row + i] = T(value * c.unit);
    }
    if (c.out.data && !w.out_direct) scatter_rows(tier, w.block, c.out, row, n);
  }
}

}  // namespace

size_t chunk_rows(size_t rows, size_t classes) {
  const size_t least = kChunkElements / classes, most = kChunkElementsMost / classes;
  size_t wanted = rows / kChunksWanted;
  if (wanted > most) wanted = most;
  if (wanted < least) wanted = least;
  return at_least_one(smaller(wanted, kBlockRows));
}

size_t scratch_bytes(const CrossEntropyCall& c) {
  return c.float64 ? Workspace<double>(c, nullptr).bytes : Workspace<float>(c, nullptr).bytes;
}

size_t scratch_bytes(const SoftmaxCall& c) {
  return c.float64 ? SoftmaxWorkspace<double>(c, nullptr).bytes
                   : SoftmaxWorkspace<float>(c, nullptr).bytes;
}

TargetReport inspect_targets(const CrossEntropyCall& c, size_t begin, size_t end) {
  TargetReport report = {-1, 0};
  for_labels(c.labels, begin, end, [&](size_t row, int64_t label) {
    const bool probabilities = c.labels.data == nullptr;
    if (!probabilities && c.ignores && label == c.ignore_bits) return true;
    if (uint64_t(label) >= c.terms.classes) {
      report.bad_row = ptrdiff_t(row);
      return false;
    }
    double repeat = 1;
    if (c.repeat.data) gather(c.repeat, row, 1, &repeat);
    if (repeat != 0) report.weight += probabilities ? repeat : repeat * class_weight(c, label);
    return true;
  });
  return report;
}

double run_chunk(const Tier& tier, const CrossEntropyCall& c, size_t begin, size_t end,
                 char* scratch) {
  return c.float64 ? cross_entropy_chunk<double>(tier, c, begin, end, scratch)
                   : cross_entropy_chunk<float>(tier, c, begin, end, scratch);
}

void run_chunk(const Tier& tier, const SoftmaxCall& c, size_t begin, size_t end, char* scratch) {
  return c.float64 ? softmax_chunk<double>(tier, c, begin, end, scratch)
                   : softmax_chunk<float>(tier, c, begin, end, scratch);
}

}  // namespace xentropy
