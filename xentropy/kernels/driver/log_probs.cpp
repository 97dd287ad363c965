// The gradient of selected log-probabilities and of the entropy, chunk by chunk.
//
// To it is added, at all classes but those selected, the upstream gradient of the logit itself,
// where there is one.
#include "driver/choose.h"
#include "driver/guard.h"
#include "driver/softcap.h"

namespace xentropy {
namespace {

template <class S>
struct LogProbWorkspace {
  bool x_direct, gradient_direct;
  size_t rows;  // of a block
  LseGradientKernel<S> kernel;
  GuardedMemory kernel_memory;
  S *staged, *slope;
  int64_t *at, *labels;
  double *log_prob, *on_log_prob, *value, *lse, *entropy, *on_entropy, *on_lse;

  LogProbWorkspace(const Tier& tier, const LogProbGradientCall& c, Arena& arena) {
    const size_t C = c.rows.terms.classes;
    x_direct = is_direct<S>(c, c.rows.logits);
    gradient_direct = is_direct<S>(c, c.rows.gradient);
    const bool any_scattered = scattered(c.rows.logits) || scattered(c.rows.gradient);
    rows = x_direct && gradient_direct ? kBlockRows : staged_rows(C, any_scattered);
    rows = smaller(rows, smaller(c.rows.rows, chunk_rows(c.rows.rows, C)));
    rows = rows_of_index(rows, c.index);
    kernel = choose_kernel<S>(tier, c);
    kernel_memory = GuardedMemory(kernel.workspace_bytes(C), arena);
    staged = x_direct && gradient_direct ? nullptr : take<S>(arena, rows * C);
    slope = c.rows.softcap != 0 ? take<S>(arena, rows * C) : nullptr;
    labels = take<int64_t>(arena, rows);
    const size_t all = rows * c.index.classes.size();
    at = take<int64_t>(arena, all);
    double** const of_classes[] = {&log_prob, &on_log_prob, &value};
    for (double** array : of_classes) *array = take<double>(arena, all);
    double** const of_rows[] = {&lse, &entropy, &on_entropy, &on_lse};
    for (double** array : of_rows) *array = take<double>(arena, rows);
  }

  // The end of the block at r: its rows have one stride in every array that is accessed in place.
  size_t block_end(const LogProbGradientCall& c, size_t r, size_t end) const {
    size_t n = smaller(rows, end - r);
    if (x_direct) n = smaller(n, run_left(c.rows.logits, r));
    if (gradient_direct) n = smaller(n, run_left(c.rows.gradient, r));
    return r + n;
  }
};

template <class S>
void read_rows(const Tier& tier, const LogProbGradientCall& c, const LogProbWorkspace<S>& w,
               size_t row, size_t n) {
  read_index(tier, c.rows, c.index, row, n, w.at, w.labels);
  gather(c.log_prob, row, n, w.log_prob);
  gather(c.on_log_prob, row, n, w.on_log_prob);
  gather(c.lse, row, n, w.lse);
  gather(c.entropy, row, n, w.entropy);
  for (size_t i = 0; i < n; ++i) w.on_entropy[i] = 0;
  if (c.on_entropy.data) gather(c.on_entropy, row, n, w.on_entropy);
  for (size_t i = 0; i < n; ++i) w.on_lse[i] = 0;
  if (!c.on_lse.data) return;
  gather(c.on_lse, row, n, w.on_lse);
  for (size_t i = 0; i < n; ++i) {
    if (w.labels[i] == kIgnored && w.on_lse[i] != 0) w.labels[i] = 0;
  }
}

// The block of the rows [row, row + n) for the kernel.
template <class S>
LseGradientBlock<S> block_of(const Tier& tier, const LogProbGradientCall& c,
                             const LogProbWorkspace<S>& w, size_t row, size_t n) {
  const Layout &x = c.rows.logits, &gradient = c.rows.gradient;
  const ptrdiff_t C = ptrdiff_t(c.rows.terms.classes);
  read_rows(tier, c, w, row, n);
  const LseSelection of_rows = {
      c.rows.terms.logit_scale, w.labels, w.lse,      w.entropy,     w.on_entropy, w.on_lse,
      c.index.classes.size(),   w.at,     w.log_prob, w.on_log_prob, w.value};
  LseGradientBlock<S> b = {n, size_t(C), w.staged, C, w.staged, C, of_rows};
  if (w.gradient_direct) {
    b.gradient = reinterpret_cast<S*>(gradient.data + gradient.rows.offset(row));
    b.gradient_stride = gradient.rows.step() / ptrdiff_t(sizeof(S));
  }
  if (w.x_direct) {
    b.x = reinterpret_cast<const S*>(x.data + x.rows.offset(row));
    b.x_stride = x.rows.step() / ptrdiff_t(sizeof(S));
  } else if constexpr (sizeof(S) > 2) {
    if (c.rows.softcap != 0) {
      cap_rows<S>(tier, c.rows, row, n, w.labels, w.staged, w.slope);
    } else {
      gather_counted(tier, x, row, n, w.labels, w.staged);
    }
  }
  return b;
}

// Adds the upstream gradients of the logits, but at the classes selected: those are settled.
template <class S>
void add_on_logits(const LogProbGradientCall& c, const LseGradientBlock<S>& b, size_t row) {
  const LseSelection& s = b.of_rows;
  for (size_t i = 0; i < b.rows; ++i) {
    if (s.labels[i] == kIgnored || s.lse[i] - s.lse[i] != 0) continue;
    const double* more = c.on_logits + (row + i) * b.classes;
    S* out = b.gradient + ptrdiff_t(i) * b.gradient_stride;
    for (size_t j = 0; j < b.classes; ++j) {
      const double sum = double(value_of(out[j])) + s.logit_scale * more[j];
      set_value(out + j, Arithmetic<S>(sum));
    }
    for (size_t k = i * s.entries; k < (i + 1) * s.entries; ++k) {
      if (s.at[k] != kIgnored) set_value(out + s.at[k], Arithmetic<S>(s.value[k]));
    }
  }
}

template <class S>
void log_prob_gradient_chunk(const Tier& tier, const LogProbGradientCall& c, size_t begin,
                             size_t end, char* workspace) {
  Arena arena = {workspace, 0};
  const LogProbWorkspace<S> w(tier, c, arena);
  for (size_t row = begin, next; row < end; row = next) {
    next = w.block_end(c, row, end);
    const LseGradientBlock<S> b = block_of(tier, c, w, row, next - row);
    w.kernel.run(b, w.kernel_memory.start, c.rows.streamed && w.gradient_direct);
    w.kernel_memory.check();
    if (c.on_logits) add_on_logits(c, b, row);
    if constexpr (sizeof(S) > 2) {
      if (c.rows.softcap != 0) {
        uncap_rows(tier, c.rows, row, b.rows, w.staged, w.slope);
      } else if (!w.gradient_direct) {
        scatter_rows(tier, w.staged, c.rows.gradient, row, b.rows);
      }
    }
  }
}

}  // namespace

size_t workspace_bytes(const Tier& tier, const LogProbGradientCall& c) {
  return for_stored(c, [&](auto s) {
    Arena counted = {nullptr, 0};
    const LogProbWorkspace<decltype(s)> w(tier, c, counted);
    return counted.used;
  });
}

void run_chunk(const Tier& tier, const LogProbGradientCall& c, size_t begin, size_t end,
               char* workspace) {
  for_stored(c,
             [&](auto s) { log_prob_gradient_chunk<decltype(s)>(tier, c, begin, end, workspace); });
}

}  // namespace xentropy
