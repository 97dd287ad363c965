// One cross-entropy call with fewer rows than threads, which share each row (rows/split.h).
#include "driver/choose.h"
#include "driver/softcap.h"

namespace xentropy {
namespace {

template <class S>
bool can_split(const CrossEntropyCall& c) {
  if (is_dense(c) || uses_columns<S>(c) || uses_groups<S>(c)) return false;
  if (c.softcap == 0) return is_direct<S>(c, c.logits) && is_direct<S>(c, c.gradient);
  if constexpr (sizeof(S) == 2) return false;  // capped rows are of the arithmetic type
  return in_place_elements<S>(c.logits) && (!c.gradient.data || in_place_elements<S>(c.gradient));
}

// The workspace of one row: with a softcap also its capped logits, which their gradient
// overwrites, and their slopes.
template <class S>
struct SplitWorkspace {
  char* kernel;
  S *capped, *slope;

  SplitWorkspace(const Tier& tier, const CrossEntropyCall& c, Arena& arena) {
    const size_t C = c.terms.classes;
    kernel = take<char>(arena, kernels_of(tier, S()).split.workspace_bytes(C, c.gradient.data));
    capped = c.softcap != 0 ? take<S>(arena, C) : nullptr;
    slope = c.softcap != 0 && c.gradient.data ? take<S>(arena, C) : nullptr;
  }
};

// Classes [begin, begin + n) of a row: one part.
struct Part {
  size_t begin, n;
};

// Step kCap. The slopes of an ignored row are 0.
template <class S>
void cap_part(const Tier& tier, const CrossEntropyCall& c, const SplitWorkspace<S>& w, size_t row,
              bool ignored, Part p) {
  S* slope = w.slope ? w.slope + p.begin : nullptr;
  if (ignored && slope) __builtin_memset(slope, 0, p.n * sizeof(S));
  if (ignored) return;
  with_stored<S>(
      c.logits, [](auto) { return true; },
      [&](auto s) {
        const auto* x =
            reinterpret_cast<const decltype(s)*>(c.logits.data + c.logits.rows.offset(row));
        kernels_of(tier, s).softcap.cap(cap_of(c), x + p.begin, p.n, w.capped + p.begin, slope);
      });
}

// Writes the gradient of a part, which is in the workspace.
template <class S>
void uncap_part(const Tier& tier, const CrossEntropyCall& c, const SplitWorkspace<S>& w, size_t row,
                Part p) {
  with_stored<S>(
      c.gradient, [](auto) { return true; },
      [&](auto s) {
        auto* to = reinterpret_cast<decltype(s)*>(c.gradient.data + c.gradient.rows.offset(row));
        kernels_of(tier, s).softcap.times_slope(w.capped + p.begin, w.slope + p.begin, p.n,
                                                to + p.begin, c.streamed);
      });
}

// One step of the kernel for one part of the row in b.
template <class S>
void kernel_part(const Tier& tier, const CrossEntropyCall& c, Step step, const Block<S>& b,
                 size_t part, Part p, char* workspace) {
  if (b.labels[0] != kIgnored) {
    const bool streamed = c.streamed && c.softcap == 0;
    kernels_of(tier, S()).split.run(step, c.terms, b, workspace, part, streamed);
  } else if (step == Step::kSettle) {
    b.loss[0] = 0;
  } else if (step == Step::kGradient) {
    __builtin_memset(b.gradient + p.begin, 0, p.n * sizeof(S));
  }
}

template <class S>
void split_part(const Tier& tier, const CrossEntropyCall& c, Step step, size_t row, size_t part,
                double* loss, char* workspace) {
  Arena arena = {workspace, 0};
  const SplitWorkspace<S> w(tier, c, arena);
  const size_t begin = part * kRowPart;
  const Part p = {begin, smaller(kRowPart, c.terms.classes - begin)};
  double sample_weight = 1, upstream = 1;
  int64_t label;
  if (c.sample_weight.data) gather(c.sample_weight, row, 1, &sample_weight);
  if (c.upstream.data) gather(c.upstream, row, 1, &upstream);
  read_labels(tier, c, row, 1, c.sample_weight.data ? &sample_weight : nullptr, &label);
  if constexpr (sizeof(S) > 2) {
    if (step == Step::kCap) return cap_part(tier, c, w, row, label == kIgnored, p);
  }
  Block<S> b = {};
  b.rows = 1;
  b.labels = &label;
  b.loss = loss + row;
  b.weight = c.weight;
  b.sample_weight = &sample_weight;
  b.upstream = &upstream;
  b.upstream_all = c.upstream_all;
  b.logits = reinterpret_cast<const S*>(c.logits.data + c.logits.rows.offset(row));
  if (c.gradient.data) {
    b.gradient = reinterpret_cast<S*>(c.gradient.data + c.gradient.rows.offset(row));
  }
  if (w.capped) {
    b.logits = w.capped;
    if (c.gradient.data) b.gradient = w.capped;
  }
  kernel_part(tier, c, step, b, part, p, w.kernel);
  if constexpr (sizeof(S) > 2) {
    if (w.capped && step == Step::kGradient) uncap_part(tier, c, w, row, p);
  }
}

}  // namespace

size_t parts_of(const CrossEntropyCall& c) {
  return for_stored(c, [&](auto s) {
    return can_split<decltype(s)>(c) ? row_parts(c.terms.classes) : size_t(1);
  });
}

size_t split_workspace_bytes(const Tier& tier, const CrossEntropyCall& c) {
  return for_stored(c, [&](auto s) {
    Arena counted = {nullptr, 0};
    const SplitWorkspace<decltype(s)> w(tier, c, counted);
    return counted.used;
  });
}

void run_part(const Tier& tier, const CrossEntropyCall& c, Step step, size_t row, size_t part,
              double* loss, char* workspace) {
  for_stored(c,
             [&](auto s) { split_part<decltype(s)>(tier, c, step, row, part, loss, workspace); });
}

double finish_rows(const CrossEntropyCall& c, size_t begin, size_t end, const double* loss) {
  SumOverRows sum;
  sum.add(begin, end - begin, loss + begin);
  store_losses(c, begin, end - begin, loss + begin);
  return sum.total();
}

}  // namespace xentropy
