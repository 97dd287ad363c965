// The row kernel: class indices, class axis contiguous, one exp per element.
//
// Cost: each logit is read once and each gradient written once, 8 bytes per element in float32. The
// rows are pipelined, so that arithmetic overlaps with memory traffic:
//
//   1. probe: k from the first logits of the row, so that exp(x) 2^-k is in range;
//   2. chunk by chunk (16 cache lines): scale and store the chunk of row r-P from a scratch row
//      while prefetching, then overwrite that chunk with the exps of row r. P rows are a pack: a
//      few short rows, or a long one;
//   3. set the target's exp to 0 and sum its chunk again: tail_sum has no cancellation;
//   4. after the last row of a pack, loss and factors: a few numbers a row, with which step 2 makes
//      the gradients one pack later. They are computed in vectors of rows (rows/pack.h);
//   5. check: if the total is out of range (k was wrong, |x| is huge, or the row holds inf or nan)
//      or all probed logits are -inf, compute the row again from its maximum.
//
// 16-bit logits and gradients (S) are converted on the fly; the exps are of type T.
//
// k is a function of the row alone: no bit of a row depends on its neighbours.
#pragma once
#include "common/peak.h"
#include "common/workspace.h"
#include "rows/pack.h"
#include "rows/writers.h"

namespace xentropy {
namespace XENTROPY_TIER {

// One row in steps 1, 2, 3 and 5. S: type in memory. kScaled: logit_scale is not 1.
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

  // Adds the distances to the sums.
  void locate(RowSums* s) const {
    s->target_distance = distance(double(value_of(x[target])));
    s->origin = double(origin) * scale;
    s->origin_distance = distance(double(origin));
  }

  // Step 5, with all that a loss and a gradient need. `row` holds the exps; null: only their sums
  // are needed.
  RowSums checked(RowSums s, T* row, T* chunk) const {
    if (!sums_in_range<T>(s.tail_sum, s.e_target) || origin == T(-INFINITY)) {
      return exps_from_maximum<T>({chunks_of(x), classes, target, scale, smooth, row, chunk},
                                  max_of(x, classes));
    }
    locate(&s);
    return s;
  }
};

template <class S>
const S* logits_of(const Block<S>& b, size_t r) {
  return b.logits + ptrdiff_t(r) * b.logits_stride;
}

// Steps 4 and 5 for a row that is settled alone. `found`: its sums, which may be out of range.
template <class S>
GradientFactors<Arithmetic<S>> settle_alone(const Terms& t, const Block<S>& b, size_t r,
                                            const RowSums& found, Arithmetic<S>* e,
                                            Arithmetic<S>* chunk) {
  typedef Arithmetic<S> T;
  const RowInFlight<S, false> row(t, logits_of(b, r), b.labels[r]);  // the exps are in e
  const RowSums sums = row.checked(found, e, chunk);
  const Settled settled = settle_row(t, b, r, sums);
  b.loss[r] = settled.loss;
  if (!e) return {};
  return finish_row<T>(t, settled, sums, row.target, nullptr, e);
}

// Step 4 for the rows q, q + 1, ... of a pack of n rows, of which row `first` of the block is row
// 0.
template <class S, class T = Arithmetic<S>>
void settle_lanes(const Terms& t, const Block<S>& b, size_t first, size_t q, size_t n,
                  const PackWorkspace<T>& w, PackResults<T>* to) {
  const RowSumsOf<VD> s = w.template get<VD>(q);
  VD class_weight = splat(1.0);
  if (b.weight) {
    class_weight = lanes_of(q, n, [&](size_t i) {
      const int64_t label = b.labels[first + i];
      return label == kIgnored ? 1 : b.weight[label];
    });
  }
  const RowFactors row = row_factors(b, first, q, n);
  const SettledOf<VD> settled =
      settle<VD>(t, class_weight, row.sample_weight, row.upstream, logs_of_odds(s), s.tail_sum,
                 s.e_target, s.origin, s.differences);
  const FactorsOf<VD> f = factors_of<T>(t, settled, s, t.label_smoothing != 0, false);
  put_settled<T>(settled, s, f, s.origin > -INFINITY, q, to);
}

// Steps 4 and 5 for a pack, the rows [first, first + n).
template <class S>
void settle_pack(const Terms& t, const Block<S>& b, size_t first, size_t n,
                 const PackWorkspace<Arithmetic<S>>& w) {
  typedef PackResults<Arithmetic<S>> Results;
  settle_rows(
      b, first, n, w, [&](size_t q, Results* of) { settle_lanes(t, b, first, q, n, w, of); },
      [&](size_t q) { return size_t(b.labels[first + q]); },
      [&](size_t q) {
        return settle_alone(t, b, first + q, w.template get<double>(q), w.row(q), w.chunks);
      });
}

// Steps 1 to 3 for row r. advance(i) makes room for its exps up to i.
template <bool kScaled, class S, class Advance>
XENTROPY_INLINE RowSums exps_of_row(const Terms& t, const Block<S>& b, size_t r, Arithmetic<S>* e,
                                    const Advance& advance) {
  typedef Arithmetic<S> T;
  const RowInFlight<S, kScaled> row(t, logits_of(b, r), b.labels[r]);
  const auto exps_at = [&](size_t i, size_t n) XENTROPY_INLINE_LAMBDA {
    advance(i + n);
    return e + i;
  };
  const auto total =
      sum_parts<T>(t.classes, row.smooth, [&](size_t begin, size_t end) XENTROPY_INLINE_LAMBDA {
        return row.template part<false>(begin, end, exps_at);
      });
  RowSums sums = row_sums(total, row.scale, row.smooth);
  if (row.smooth || t.z_loss != 0) row.locate(&sums);
  sums.origin = double(row.origin) * row.scale;
  return sums;
}

// Stores: one of the classes of rows/writers.h. kScaled: logit_scale is not 1.
template <class S, class Stores, bool kScaled>
void rows_with_gradient(const Terms& t, const Block<S>& b, const PackWorkspace<Arithmetic<S>>& w) {
  typedef Arithmetic<S> T;
  const size_t C = t.classes;
  Stores stores;
  for (size_t r = 0, q = 0; r < b.rows + w.rows; ++r) {
    const bool writes = r >= w.rows, in_batch = r < b.rows;
    const S* x = logits_of(b, in_batch ? r : b.rows - 1);
    T* e = w.row(q);
    if (writes) {
      S* out = b.gradient + ptrdiff_t(r - w.rows) * b.gradient_stride;
      stores.begin_row(out, C, w.finish[q]);
    }
    const auto advance = [&](size_t end) XENTROPY_INLINE_LAMBDA {
      if (writes) stores.advance(e, end, x);
    };
    if (in_batch && b.labels[r] != kIgnored) {
      w.put(q, exps_of_row<kScaled>(t, b, r, e, advance));
    } else {
      advance(C);
      if (in_batch) __builtin_memset(e, 0, C * sizeof(T));
    }
    q = q + 1 == w.rows ? 0 : q + 1;
    if (in_batch && (q == 0 || r + 1 == b.rows)) {
      const size_t n = q == 0 ? w.rows : q;
      settle_pack(t, b, r + 1 - n, n, w);
    }
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
    const RowInFlight<S, kScaled> row(t, logits_of(b, r), b.labels[r]);
    const auto exps_at = [=](size_t, size_t) { return e; };
    const auto total =
        sum_parts<T>(t.classes, row.smooth, [&](size_t begin, size_t end) XENTROPY_INLINE_LAMBDA {
          return row.template part<true>(begin, end, exps_at);
        });
    const RowSums sums = row.checked(row_sums(total, row.scale, row.smooth), nullptr, e);
    b.loss[r] = settle_row(t, b, r, sums).loss;
  }
}

// Map: GradientMap or UnbiasedMap. kScaled: scale the logits first, by 1 too, which changes no bit.
template <class S, class Map, bool kScaled>
void write_rows(const Terms& t, const Block<S>& b, const PackWorkspace<Arithmetic<S>>& w,
                bool streamed) {
  if (!streamed) return rows_with_gradient<S, RegularStores<S, Map>, kScaled>(t, b, w);
  rows_with_gradient<S, StreamedStores<S, Map>, kScaled>(t, b, w);
  stream_fence();
}

template <class S>
size_t rows_bytes(size_t classes, bool gradient) {
  return bytes_of<PackWorkspace<Arithmetic<S>>>(classes, gradient);
}

template <class S>
void rows(const Terms& t, const Block<S>& b, char* workspace, bool streamed) {
  Arena arena = {workspace, 0};
  PackWorkspace<Arithmetic<S>> w(t.classes, b.gradient, arena);
  if (w.rows > b.rows) w.rows = b.rows;
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
