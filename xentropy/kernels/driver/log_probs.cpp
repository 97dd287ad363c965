// The gradient of selected log-probabilities and of the entropy, chunk by chunk.
//
// With g_j the upstream gradients of the classes y_j, G their sum less that of the lse, and g of
// the entropy H:
//
//     gradient_c = scale (sum_{j: y_j = c} g_j - G p_c - g p_c (log p_c + H))
//
// and the upstream gradient of the logit itself at all other classes, where there is one.
//
// At the classes y it is computed here, from log p: 1 - p = -expm1(log p) has all its digits where
// p is almost 1. No other class has a p above 1/2 then. Where p is not large, the log p given, a
// float32 number perhaps, has fewer digits of it than x - lse.
#include <math.h>

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
  LseRow* row;

  LogProbWorkspace(const Tier& tier, const LogProbGradientCall& c, Arena& arena) {
    const size_t C = c.rows.terms.classes;
    x_direct = is_direct<S>(c, c.rows.logits);
    gradient_direct = is_direct<S>(c, c.rows.gradient);
    const bool any_scattered = scattered(c.rows.logits) || scattered(c.rows.gradient);
    rows = x_direct && gradient_direct ? kBlockRows : staged_rows(C, any_scattered);
    rows = smaller(rows, smaller(c.rows.rows, chunk_rows(c.rows.rows, C)));
    rows = rows_of_index(rows, c.index);
    kernel = kernels_of(tier, S()).lse_gradient;
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
    row = take<LseRow>(arena, rows);
  }

  // The end of the block at r: its rows have one stride in every array that is accessed in place.
  size_t block_end(const LogProbGradientCall& c, size_t r, size_t end) const {
    size_t n = smaller(rows, end - r);
    if (x_direct) n = smaller(n, run_left(c.rows.logits, r));
    if (gradient_direct) n = smaller(n, run_left(c.rows.gradient, r));
    return r + n;
  }
};

// Below this entropy the part of the gradient at a most probable class without a label is taken
// from the others: its own log p + H would be off by |lse| 2^-53, and H has no more digits.
template <class T>
constexpr double kConfident = sizeof(T) == 4 ? 0x1p-6 : 0x1p-1;

// Of one row: the classes, their log p, upstream gradients, and the results.
struct Selection {
  size_t k;
  const int64_t* at;
  double* log_prob;
  const double* upstream;
  double* value;
};

constexpr double kLarge = -1;  // log p

template <class S>
void restore_digits(const Selection& s, const S* x, double scale, double lse) {
  for (size_t i = 0; i < s.k; ++i) {
    if (s.at[i] == kIgnored || !(s.log_prob[i] < kLarge)) continue;
    s.log_prob[i] = double(value_of(x[s.at[i]])) * scale - lse;
  }
}

// The gradients at the classes, before logit_scale; returns G. Classes may be given more than once.
double settle_selection(const Selection& s, double entropy, double on_entropy, double on_lse) {
  double sum = 0 - on_lse;
  for (size_t i = 0; i < s.k; ++i) {
    if (s.at[i] == kIgnored) continue;
    sum += s.upstream[i];
    double own = 0, others = 0 - on_lse;
    for (size_t j = 0; j < s.k; ++j) {
      if (s.at[j] != kIgnored) (s.at[j] == s.at[i] ? own : others) += s.upstream[j];
    }
    const double log_p = s.log_prob[i], p = exp(log_p);
    const double by_entropy = on_entropy == 0 || p == 0 ? 0 : on_entropy * p * (log_p + entropy);
    s.value[i] = -own * expm1(log_p) - others * p - by_entropy;
  }
  return sum;
}

// Has the most probable class of a confident row no label?
template <class T>
bool is_balanced(const Selection& s, double entropy, double on_entropy) {
  if (on_entropy == 0 || !(entropy < kConfident<T>)) return false;
  for (size_t i = 0; i < s.k; ++i) {
    if (s.at[i] != kIgnored && s.log_prob[i] > -0.69) return false;
  }
  return true;
}

template <class S>
void settle_rows(const LogProbWorkspace<S>& w, const LseGradientBlock<S>& b) {
  const double scale = b.logit_scale;
  const size_t k = b.entries;
  for (size_t i = 0; i < b.rows; ++i) {
    const Selection s = {k, w.at + i * k, w.log_prob + i * k, w.on_log_prob + i * k,
                         w.value + i * k};
    const double entropy = w.entropy[i], on_entropy = w.on_entropy[i];
    restore_digits(s, b.x + ptrdiff_t(i) * b.x_stride, scale, w.lse[i]);
    const double sum = settle_selection(s, entropy, on_entropy, w.on_lse[i]);
    for (size_t j = 0; j < k; ++j) s.value[j] *= scale;
    w.row[i] = {w.lse[i],
                on_entropy == 0 ? 0 : w.lse[i] - entropy,
                0 - sum * scale,
                0 - on_entropy * scale,
                w.labels[i] == kIgnored,
                is_balanced<Arithmetic<S>>(s, entropy, on_entropy)};
  }
}

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
  LseGradientBlock<S> b = {n, size_t(C), c.rows.terms.logit_scale, w.staged, C,      w.staged,
                           C, w.row,     c.index.classes.size(),   w.at,     w.value};
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
  for (size_t i = 0; i < b.rows; ++i) {
    if (b.row[i].ignored || b.row[i].lse - b.row[i].lse != 0) continue;
    const double* more = c.on_logits + (row + i) * b.classes;
    S* out = b.gradient + ptrdiff_t(i) * b.gradient_stride;
    for (size_t j = 0; j < b.classes; ++j) {
      const double sum = double(value_of(out[j])) + b.logit_scale * more[j];
      set_value(out + j, Arithmetic<S>(sum));
    }
    for (size_t k = i * b.entries; k < (i + 1) * b.entries; ++k) {
      if (b.at[k] != kIgnored) set_value(out + b.at[k], Arithmetic<S>(b.value[k]));
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
    settle_rows(w, b);
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
