// One cross-entropy call with fewer rows than threads, which share each row (rows/split.h).
#include "driver/choose.h"

namespace xentropy {
namespace {

template <class S>
bool can_split(const CrossEntropyCall& c) {
  return !is_dense(c) && !uses_columns<S>(c) && !uses_groups<S>(c) && is_direct<S>(c, c.logits) &&
         is_direct<S>(c, c.gradient);
}

template <class S>
void split_part(const Tier& tier, const CrossEntropyCall& c, Step step, size_t row, size_t part,
                double* loss, char* workspace) {
  double sample_weight = 1, upstream = 1;
  int64_t label;
  if (c.sample_weight.data) gather(c.sample_weight, row, 1, &sample_weight);
  if (c.upstream.data) gather(c.upstream, row, 1, &upstream);
  read_labels(tier, c, row, 1, c.sample_weight.data ? &sample_weight : nullptr, &label);
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
  if (label != kIgnored) {
    kernels_of(tier, S()).split.run(step, c.terms, b, workspace, part, c.streamed);
  } else if (step == Step::kSettle) {
    b.loss[0] = 0;
  } else if (step == Step::kGradient) {
    const size_t begin = part * kRowPart;
    __builtin_memset(b.gradient + begin, 0, smaller(kRowPart, c.terms.classes - begin) * sizeof(S));
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
    return kernels_of(tier, s).split.workspace_bytes(c.terms.classes, c.gradient.data);
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
