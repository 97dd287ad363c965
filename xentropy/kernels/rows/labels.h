// The row kernel: class indices, class axis contiguous, one exp per element.
//
// Cost: each logit is read once and each gradient written once, 8 bytes per element in float32. The
// rows are pipelined, so that arithmetic overlaps with memory traffic:
//
//   1. probe: k from the first logits of the row, so that exp(x) 2^-k is in range;
//   2. chunk by chunk (16 cache lines): scale and store the chunk of row r-1 from the scratch row
//      while prefetching, then overwrite that chunk with the exps of row r;
//   3. set the target's exp to 0 and sum its chunk again: tail_sum has no cancellation;
//   4. check: if the total is out of range (k was wrong, |x| is huge, or the row holds inf or nan)
//      or all probed logits are -inf, compute the row again from its maximum;
//   5. loss and factors: a few numbers, with which step 2 makes the gradient one row later.
//
// 16-bit logits and gradients (S) are converted on the fly; the exps are of type T.
//
// k is a function of the row alone: no bit of a row depends on its neighbours.
#pragma once
#include "common/peak.h"
#include "common/workspace.h"
#include "rows/writers.h"

namespace xentropy {
namespace XENTROPY_TIER {

// One row in steps 1, 3 and 4. S: type in memory. kScaled: logit_scale is not 1.
template <class S, bool kScaled>
struct RowInFlight {
  typedef Arithmetic<S> T;

  const S* x;
  size_t classes, target;
  double scale;
  bool smooth;
  T origin;
  double offset;
  DirectExp<T, kScaled> exp;

  RowInFlight(const Terms& t, const S* row, int64_t label)
      : x(row),
        classes(t.classes),
        target(size_t(label)),
        scale(t.logit_scale),
        smooth(t.label_smoothing != 0),
        origin(max_of(row, classes < kProbe ? classes : kProbe)),
        offset(guess_offset<T>(origin, scale)),
        exp{ExponentOffset<T>(offset, scale), LogitScale<T>(scale)} {}

  // Step 2 for the classes [begin, end). exps_at(i, n) returns where the exps of the n classes from
  // i on go. kPrefetch: prefetch the logits. Label smoothing is tested once per chunk: one
  // instance of the kernel serves rows with and without it.
  template <bool kPrefetch, class ExpsAt>
  XENTROPY_INLINE_MEMBER RowAccumulator<T> part(size_t begin, size_t end,
                                                const ExpsAt& exps_at) const {
    RowAccumulator<T> sums;
    for_chunks<T>(begin, end, [&](size_t i, size_t n) XENTROPY_INLINE_LAMBDA {
      T* e = exps_at(i, n);
      if (smooth) sum_differences(x + i, n, origin, sums.differences);  // first: e may be x + i
      sums.chunk(i, n, target, false, e, [&](T* to, Total<T>& total) XENTROPY_INLINE_LAMBDA {
        exp_chunk<kPrefetch>(x + i, n, exp, to, total);
      });
    });
    return sums;
  }

  // scale * value - (k + kTop) ln 2
  double distance(double value) const {
    return logit_distance(offset + Exp<T>::kTop, value, scale);
  }

  // Steps 3 and 4. `row` holds the exps; null: only their sums are needed.
  RowSums finish(const RowAccumulator<T>& sums, T* row, T* chunk) const {
    RowSums s = row_sums(sums, scale, smooth);
    if (!sums_in_range<T>(s.tail_sum, s.e_target) || origin == T(-INFINITY)) {
      return exps_from_maximum<T>({chunks_of(x), classes, target, scale, smooth, row, chunk},
                                  max_of(x, classes));
    }
    s.target_distance = distance(double(value_of(x[target])));
    s.origin = double(origin) * scale;
    s.origin_distance = distance(double(origin));
    return s;
  }
};

// Stores: one of the classes of rows/writers.h. kScaled: logit_scale is not 1.
template <class S, class Stores, bool kScaled>
void rows_with_gradient(const Terms& t, const Block<S>& b,
                        const RowWorkspace<Arithmetic<S>>& workspace) {
  typedef Arithmetic<S> T;
  const size_t C = t.classes;
  T* e = workspace.exps;
  Stores stores;
  for (size_t r = 0; r <= b.rows; ++r) {
    const bool reads = r < b.rows && b.labels[r] != kIgnored, writes = r > 0;
    const S* x = b.logits + ptrdiff_t(r < b.rows ? r : r - 1) * b.logits_stride;
    GradientFactors<T> finish = {0, 0, 0};  // an ignored row: exps 0, gradient +0
    if (reads) {
      const RowInFlight<S, kScaled> row(t, x, b.labels[r]);
      const auto exps_at = [&](size_t i, size_t n) XENTROPY_INLINE_LAMBDA {
        if (writes) stores.advance(e, i + n, x);
        return e + i;
      };
      const auto total =
          sum_parts<T>(C, row.smooth, [&](size_t begin, size_t end) XENTROPY_INLINE_LAMBDA {
            return row.template part<false>(begin, end, exps_at);
          });
      const RowSums sums = row.finish(total, e, workspace.chunks);
      const Settled settled = settle_row(t, b, r, sums);
      b.loss[r] = settled.loss;
      finish = finish_row<T>(t, settled, sums, row.target, nullptr, e);
    } else {
      if (writes) stores.advance(e, C, x);
      if (r < b.rows) {
        b.loss[r] = 0;
        __builtin_memset(e, 0, C * sizeof(T));
      }
    }
    if (r < b.rows) stores.begin_row(b.gradient + ptrdiff_t(r) * b.gradient_stride, C, finish);
  }
  stores.flush();
}

// kScaled: logit_scale is not 1.
template <class S, bool kScaled>
void rows_loss(const Terms& t, const Block<S>& b, Arithmetic<S>* e) {
  typedef Arithmetic<S> T;
  for (size_t r = 0; r < b.rows; ++r) {
    b.loss[r] = 0;
    if (b.labels[r] == kIgnored) continue;
    const RowInFlight<S, kScaled> row(t, b.logits + ptrdiff_t(r) * b.logits_stride, b.labels[r]);
    const auto exps_at = [=](size_t, size_t) { return e; };
    const auto total =
        sum_parts<T>(t.classes, row.smooth, [&](size_t begin, size_t end) XENTROPY_INLINE_LAMBDA {
          return row.template part<true>(begin, end, exps_at);
        });
    b.loss[r] = settle_row(t, b, r, row.finish(total, nullptr, e)).loss;
  }
}

// Map: GradientMap or UnbiasedMap. kScaled: scale the logits first, by 1 too, which changes no bit.
template <class S, class Map, bool kScaled>
void write_rows(const Terms& t, const Block<S>& b, const RowWorkspace<Arithmetic<S>>& w,
                bool streamed) {
  if (!streamed) return rows_with_gradient<S, RegularStores<S, Map>, kScaled>(t, b, w);
  rows_with_gradient<S, StreamedStores<S, Map>, kScaled>(t, b, w);
  stream_fence();
}

template <class S>
size_t rows_bytes(size_t classes, bool gradient) {
  return bytes_of<RowWorkspace<Arithmetic<S>>>(classes, gradient);
}

template <class S>
void rows(const Terms& t, const Block<S>& b, char* workspace, bool streamed) {
  Arena arena = {workspace, 0};
  const RowWorkspace<Arithmetic<S>> w(t.classes, b.gradient, arena);
  if (b.gradient == nullptr) {
    return with_scaled(t.logit_scale,
                       [&](auto scaled) { rows_loss<S, scaled.value>(t, b, w.chunks); });
  }
  // Plain calls have an instance of their own; options share one, with scaled exps and a bias.
  if (t.logit_scale == 1 && t.label_smoothing == 0) {
    write_rows<S, UnbiasedMap<Arithmetic<S>>, false>(t, b, w, streamed);
  } else {
    write_rows<S, GradientMap<Arithmetic<S>>, true>(t, b, w, streamed);
  }
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
