// One call of the divergence of two softmaxes, chunk by chunk.
#include "driver/choose.h"
#include "driver/guard.h"

namespace xentropy {
namespace {

template <class T>
struct DistillationWorkspace {
  bool x_direct, teacher_direct, gradient_direct;
  size_t rows;  // of a block
  GuardedMemory kernel_memory;
  T *x, *teacher, *gradient;  // staged
  int64_t* labels;
  double *sample_weight, *upstream, *factor, *loss;

  DistillationWorkspace(const Tier& tier, const DistillationCall& c, Arena& arena) {
    const CrossEntropyCall& all = c.rows;
    const size_t C = all.terms.classes;
    x_direct = is_direct<T>(c, all.logits);
    teacher_direct = is_direct<T>(c, c.teacher);
    gradient_direct = is_direct<T>(c, all.gradient);
    const bool direct = x_direct && teacher_direct && gradient_direct;
    const bool any_scattered =
        scattered(all.logits) || scattered(c.teacher) || scattered(all.gradient);
    rows = direct ? kBlockRows : staged_rows(C, any_scattered);
    rows = smaller(rows, smaller(all.rows, chunk_rows(all.rows, C)));
    const Kernels<T>& k = kernels_of(tier, T());
    kernel_memory =
        GuardedMemory(c.teacher.data ? choose_kernel<T>(tier, c).workspace_bytes(C)
                                     : k.sparse_distillation.workspace_bytes(C, c.given),
                      arena);
    x = x_direct ? nullptr : take<T>(arena, rows * C);
    teacher = teacher_direct ? nullptr : take<T>(arena, rows * C);
    gradient = nullptr;  // staged logits are overwritten by their gradient
    if (!gradient_direct) gradient = x_direct ? take<T>(arena, rows * C) : x;
    labels = take<int64_t>(arena, rows);
    sample_weight = all.sample_weight.data ? take<double>(arena, rows) : nullptr;
    upstream = all.upstream.data ? take<double>(arena, rows) : nullptr;
    factor = take<double>(arena, rows);
    loss = take<double>(arena, rows);
  }

  // The end of the block at r: its rows have one stride in every array that is accessed in place.
  size_t block_end(const DistillationCall& c, size_t r, size_t end) const {
    size_t n = smaller(rows, end - r);
    if (x_direct) n = smaller(n, run_left(c.rows.logits, r));
    if (c.teacher.data && teacher_direct) n = smaller(n, run_left(c.teacher, r));
    if (c.rows.gradient.data && gradient_direct) n = smaller(n, run_left(c.rows.gradient, r));
    return r + n;
  }
};

// The address of the rows of a block: in the array, or gathered into scratch.
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

// The block of the rows [row, row + n) for the kernel. The weights of its rows go to *weight.
template <class T>
DistillationBlock<T> block_of(const Tier& tier, const DistillationCall& c,
                              const DistillationWorkspace<T>& w, size_t row, size_t n,
                              const double** weight) {
  const CrossEntropyCall& all = c.rows;
  DistillationBlock<T> b = {};
  b.rows = n;
  b.classes = all.terms.classes;
  b.beta = c.beta;
  b.log_beta = c.log_beta;
  b.logit_scale = all.terms.logit_scale;
  b.teacher_scale = c.teacher_scale;
  b.labels = w.labels;
  b.factor = w.factor;
  b.loss = w.loss;
  *weight = w.sample_weight ? row_values(all.sample_weight, row, n, w.sample_weight) : nullptr;
  const double* upstream = w.upstream ? row_values(all.upstream, row, n, w.upstream) : nullptr;
  read_labels(tier, all, row, n, *weight, w.labels);
  for (size_t i = 0; i < n; ++i) {
    w.factor[i] = all.upstream_all * (upstream ? upstream[i] : 1) * (*weight ? (*weight)[i] : 1) *
                  all.terms.unit / all.terms.divisor;
  }
  b.x = rows_of(tier, all.logits, w.x_direct, row, n, w.labels, w.x, &b.x_stride);
  if (c.teacher.data) {
    b.teacher =
        rows_of(tier, c.teacher, w.teacher_direct, row, n, w.labels, w.teacher, &b.teacher_stride);
  }
  if (!all.gradient.data) return b;
  b.gradient_stride = ptrdiff_t(b.classes);
  b.gradient = w.gradient;
  if (w.gradient_direct) {
    b.gradient_stride = all.gradient.rows.step() / ptrdiff_t(sizeof(T));
    b.gradient = reinterpret_cast<T*>(all.gradient.data + all.gradient.rows.offset(row));
  }
  return b;
}

template <class T>
double distillation_chunk(const Tier& tier, const DistillationCall& c, size_t begin, size_t end,
                          char* workspace) {
  Arena arena = {workspace, 0};
  const DistillationWorkspace<T> w(tier, c, arena);
  SumOverRows sum;
  for (size_t row = begin, next; row < end; row = next) {
    next = w.block_end(c, row, end);
    const double* weight;
    const DistillationBlock<T> b = block_of(tier, c, w, row, next - row, &weight);
    const Kernels<T>& k = kernels_of(tier, T());
    const bool streamed = c.rows.streamed && w.gradient_direct;
    if (c.teacher.data) {
      choose_kernel<T>(tier, c).run(b, w.kernel_memory.start, streamed);
    } else {
      k.sparse_distillation.run(
          {b, c.given, c.log_probs + row * (c.given + 1), c.index + row * c.given,
           c.row_betas ? c.row_betas + 2 * row : nullptr},
          w.kernel_memory.start, streamed);
    }
    w.kernel_memory.check();
    if (!w.gradient_direct) scatter_rows(tier, w.gradient, c.rows.gradient, row, b.rows);
    for (size_t i = 0; i < b.rows; ++i) {
      if (w.labels[i] != kIgnored) w.loss[i] *= c.rows.terms.unit * (weight ? weight[i] : 1);
    }
    sum.add(row, b.rows, w.loss);
    store_losses(c.rows, row, b.rows, w.loss);
  }
  return sum.total();
}

}  // namespace

size_t workspace_bytes(const Tier& tier, const DistillationCall& c) {
  Arena counted = {nullptr, 0};
  if (c.rows.float64) {
    DistillationWorkspace<double>(tier, c, counted);
  } else {
    DistillationWorkspace<float>(tier, c, counted);
  }
  return counted.used;
}

double run_chunk(const Tier& tier, const DistillationCall& c, size_t begin, size_t end,
                 char* workspace) {
  return c.rows.float64 ? distillation_chunk<double>(tier, c, begin, end, workspace)
                        : distillation_chunk<float>(tier, c, begin, end, workspace);
}

}  // namespace xentropy
