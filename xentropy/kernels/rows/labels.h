// The row kernel: class indices, class axis contiguous, one exp per element.
//
// Cost: each logit is read once and each gradient written once, 8 bytes an element in
// float32. Arithmetic hides behind memory because the rows are pipelined:
//
//   1. probe: k from the first logits of the row, so that exp(x) 2^-k is in range;
//   2. chunk by chunk (16 cache lines): finish and store the chunk of row r-1 from the
//      scratch row while prefetching, then overwrite that chunk with the exps of row r;
//   3. the target's exp is taken out and its chunk summed again: `others` is exact;
//   4. check: if the total is out of range (k was wrong, |x| is huge, or the row holds
//      inf or nan) or nothing but -inf was probed, do the row again from its maximum;
//   5. settle: a few numbers from which step 2 makes the gradient one row later.
//
// 16-bit logits and gradients (S) are widened and narrowed on the way; the exps are T.
//
// k is a function of the row alone: no row depends on its neighbours in any bit.
#pragma once
#include "common/peak.h"
#include "common/workspace.h"
#include "rows/writers.h"

namespace xentropy {
namespace XENTROPY_TIER {

// One row on its way through the scratch: steps 1, 3 and 4.
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

  // Step 2 for classes [begin, end); exps_at(i, n) says where the exps of a chunk go. What options
  // ask for is decided chunk by chunk, which costs nothing and spares a copy of the kernel for
  // each combination of them.
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
  double distance(double value) const { return octaves_from(offset + Exp<T>::kTop, value, scale); }

  // `row` holds the exps, or is null if only their sums are wanted.
  RowSums finish(const RowAccumulator<T>& sums, T* row, T* chunk) const {
    RowSums s = row_sums(sums, scale, smooth);
    if (!sums_in_range<T>(s.tail_sum, s.e_target) || origin == T(-INFINITY)) {
      return exp_any_row<T>({chunks_of(x), classes, target, scale, smooth, row, chunk},
                            max_of(x, classes));
    }
    s.target_distance = distance(double(value_of(x[target])));
    s.origin = double(origin) * scale;
    s.origin_distance = distance(double(origin));
    return s;
  }
};

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
    Finish<T> finish = {0, 0, 0};  // an ignored row: exps 0, gradient +0
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

template <class S>
size_t rows_bytes(size_t classes, bool gradient) {
  return bytes_of<RowWorkspace<Arithmetic<S>>>(classes, gradient);
}

template <class S>
void rows(const Terms& t, const Block<S>& b, char* workspace, bool streamed) {
  Arena arena = {workspace, 0};
  const RowWorkspace<Arithmetic<S>> w(t.classes, b.gradient, arena);
  typedef Finisher<Arithmetic<S>> Map;
  with_scaled(t.logit_scale, [&](auto scaled) {
    if (b.gradient == nullptr) {
      rows_loss<S, scaled.value>(t, b, w.chunks);
    } else if (streamed) {
      rows_with_gradient<S, StreamedStores<S, Map>, scaled.value>(t, b, w);
      stream_fence();
    } else {
      rows_with_gradient<S, RegularStores<S, Map>, scaled.value>(t, b, w);
    }
  });
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
