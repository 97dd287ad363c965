// One long row by several threads: the row kernel in three steps, two of them by parts.
//
//   1. exps of a part (kRowPart logits) into the scratch row, and their sums: any thread;
//   2. settle: the sums of the parts in order, then as in rows.h: one thread, when all are done;
//   3. gradient of a part, from the scratch row: any thread.
//
// The sums of a row are closed part by part in the row kernel too, so that the results are its
// bits. Cost: as the row kernel; but the exps leave the L1 cache between steps 1 and 3, and every
// step waits for all threads. For the losses alone step 1 keeps no exps and there is no step 3.
#pragma once
#include "rows/labels.h"

namespace xentropy {
namespace XENTROPY_TIER {

// The scratch memory of such a row.
template <class T>
struct SplitRow {
  typedef RowAccumulator<T> Sums;
  static_assert(sizeof(Sums) <= kPartBytes && sizeof(Finish<T>) <= kPartBytes, "");

  char* sums;
  Finish<T>* finish;
  T *chunk, *exps;

  SplitRow(size_t classes, T* scratch) {
    sums = reinterpret_cast<char*>(scratch);
    char* after = sums + row_parts(classes) * kPartBytes;
    finish = reinterpret_cast<Finish<T>*>(after);
    chunk = reinterpret_cast<T*>(after + kPartBytes);
    exps = chunk + kScratchChunk;
  }
  Sums& sums_of(size_t part) const { return *reinterpret_cast<Sums*>(sums + part * kPartBytes); }
};

// Step 3.
template <class S, class Stores>
void store_part(const Arithmetic<S>* e, size_t n, const Finish<Arithmetic<S>>& finish, S* out) {
  Stores stores;
  stores.begin_row(out, n, finish);
  const S* ahead = reinterpret_cast<const S*>(e);  // no row is read meanwhile
  for_chunks<Arithmetic<S>>(
      0, n, [&](size_t i, size_t m) XENTROPY_INLINE_LAMBDA { stores.advance(e, i + m, ahead); });
  stores.flush();
}

template <class S, bool kScaled>
void split_step(Step step, const Terms& t, const Block<S>& b, Arithmetic<S>* scratch, size_t part,
                bool streamed) {
  typedef Arithmetic<S> T;
  const size_t C = t.classes, begin = part * kRowPart;
  const size_t end = C - begin > kRowPart ? begin + kRowPart : C;
  const SplitRow<T> s(C, scratch);
  if (step == Step::kGradient) {
    const T* e = s.exps + begin;
    S* out = b.gradient + begin;
    typedef Finisher<T> Map;
    if (!streamed) return store_part<S, RegularStores<S, Map>>(e, end - begin, *s.finish, out);
    store_part<S, StreamedStores<S, Map>>(e, end - begin, *s.finish, out);
    return stream_fence();
  }
  const RowInFlight<S, kScaled> row(t, b.logits, b.labels[0]);
  if (step == Step::kSettle) {
    const auto total =
        sum_parts<T>(C, row.smooth, [&](size_t i, size_t) { return s.sums_of(i / kRowPart); });
    const RowSums sums = row.finish(total, b.gradient ? s.exps : nullptr, s.chunk);
    const Settled settled = settle_row(t, b, 0, sums);
    b.loss[0] = settled.loss;
    if (b.gradient) *s.finish = finish_row<T>(t, settled, sums, row.target, nullptr, s.exps);
  } else if (b.gradient) {
    s.sums_of(part) =
        row.template part<false>(begin, end, [&](size_t i, size_t) { return s.exps + i; });
  } else {
    alignas(kLineBytes) T chunk[kChunk<T>];
    s.sums_of(part) = row.template part<true>(begin, end, [&](size_t, size_t) { return +chunk; });
  }
}

template <class S>
void split(Step step, const Terms& t, const Block<S>& b, Arithmetic<S>* scratch, size_t part,
           bool streamed) {
  with_scaled(t.logit_scale, [&](auto scaled) {
    split_step<S, scaled.value>(step, t, b, scratch, part, streamed);
  });
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
