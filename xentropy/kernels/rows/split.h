// One long row shared by several threads: the row kernel in three steps, two of them by parts.
//
//   1. exps of a part (kRowPart logits) into the scratch row, and their sums: any thread;
//   2. the sums of the parts in order, then loss and factors as in rows/labels.h: one thread, after
//      step 1 of all parts;
//   3. gradient of a part, from the scratch row: any thread.
//
// The row kernel closes its sums after every part too, so the results have the same bits. Cost:
// that of the row kernel, except that the exps leave the L1 cache between steps 1 and 3, and every
// step waits for all threads. Without a gradient step 1 keeps no exps and there is no step 3.
#pragma once
#include "rows/labels.h"

namespace xentropy {
namespace XENTROPY_TIER {

// The workspace of one row, which all threads share.
template <class T>
struct SplitWorkspace {
  RowAccumulator<T>* sums;  // one per part
  GradientFactors<T>* finish;
  RowWorkspace<T> row;

  SplitWorkspace(size_t classes, bool gradient, Arena& arena)
      : sums(take<RowAccumulator<T>>(arena, row_parts(classes))),
        finish(take<GradientFactors<T>>(arena, 1)),
        row(classes, gradient, arena) {}
};

template <class S>
size_t split_bytes(size_t classes, bool gradient) {
  return bytes_of<SplitWorkspace<Arithmetic<S>>>(classes, gradient);
}

// Step 3. Stores: one of the classes of rows/writers.h.
template <class S, class Stores>
void store_part(const Arithmetic<S>* e, size_t n, const GradientFactors<Arithmetic<S>>& finish,
                S* out) {
  Stores stores;
  stores.begin_row(out, n, finish);
  const S* ahead = reinterpret_cast<const S*>(e);  // the prefetch address: the next row is unknown
  for_chunks<Arithmetic<S>>(
      0, n, [&](size_t i, size_t m) XENTROPY_INLINE_LAMBDA { stores.advance(e, i + m, ahead); });
  stores.flush();
}

// Step 1. The exps are kept where there will be a gradient.
template <class S>
void sum_part(const Terms& t, const Block<S>& b, size_t part, size_t begin, size_t end,
              const SplitWorkspace<Arithmetic<S>>& w) {
  alignas(kLineBytes) Arithmetic<S> chunk[kChunk<Arithmetic<S>>];
  const auto exps_at = [&](size_t i, size_t) { return w.row.exps ? w.row.exps + i : +chunk; };
  with_scaled(t.logit_scale, [&](auto scaled) {
    const RowInFlight<S, scaled.value> row(t, b.logits, b.labels[0]);
    w.sums[part] = row.template part<true>(begin, end, exps_at);
  });
}

// Step 2.
template <class S>
void settle_parts(const Terms& t, const Block<S>& b, const SplitWorkspace<Arithmetic<S>>& w) {
  typedef Arithmetic<S> T;
  const bool smooth = t.label_smoothing != 0;
  const auto total =
      sum_parts<T>(t.classes, smooth, [&](size_t i, size_t) { return w.sums[i / kRowPart]; });
  const RowSums sums = row_sums(total, t.logit_scale, smooth);
  *w.finish = settle_alone(t, b, 0, sums, w.row.exps, w.row.chunks);
}

template <class S>
void split(Step step, const Terms& t, const Block<S>& b, char* workspace, size_t part,
           bool streamed) {
  typedef GradientMap<Arithmetic<S>> Map;
  const size_t C = t.classes, begin = part * kRowPart;
  const size_t end = C - begin > kRowPart ? begin + kRowPart : C;
  Arena arena = {workspace, 0};
  const SplitWorkspace<Arithmetic<S>> w(C, b.gradient, arena);
  if (step == Step::kExps) return sum_part(t, b, part, begin, end, w);
  if (step == Step::kSettle) return settle_parts(t, b, w);
  const Arithmetic<S>* e = w.row.exps + begin;
  S* out = b.gradient + begin;
  if (!streamed) return store_part<S, RegularStores<S, Map>>(e, end - begin, *w.finish, out);
  store_part<S, StreamedStores<S, Map>>(e, end - begin, *w.finish, out);
  stream_fence();
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
