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
// k is a function of the row alone: no row depends on its neighbours in any bit.
#pragma once
#include "peak.h"
#include "stores.h"

namespace xentropy {
namespace XENTROPY_TIER {

constexpr size_t kProbe = 64;  // logits from which k is guessed

// k such that the exp of the largest probed logit is about 2^kTop.
template <class T>
XENTROPY_INLINE double guess_shift(double probed, double scale) {
  double n = __builtin_rint(probed * scale * Exp<T>::kLog2E);
  if (!(n > -Exp<T>::kMaxShift)) n = -Exp<T>::kMaxShift;
  if (n > Exp<T>::kMaxShift) n = Exp<T>::kMaxShift;
  return n - Exp<T>::kTop;
}

// scale * value - (k + kTop) ln 2, in two parts: nothing is lost at 1e6.
template <class T>
double distance_from_top(double value, double scale, double k) {
  const double n = k + Exp<T>::kTop, product = value * scale;
  if (product - product != 0) return product;  // -inf
  const double lost = __builtin_fma(value, scale, -product);
  return __builtin_fma(-n, Exp<double>::kLn2Head, product) +
         __builtin_fma(-n, Exp<double>::kLn2Rest, lost);
}

// One row on its way through the scratch: steps 1, 3 and 4.
template <class T, bool kScaled, bool kSmooth>
struct RowInFlight {
  const T* x;
  size_t classes, target;
  double scale, shift;
  T origin;
  DirectExp<T, kScaled> exp;
  RowAccumulator<T> sums;

  RowInFlight(const T* row, size_t row_classes, size_t label, double logit_scale)
      : x(row),
        classes(row_classes),
        target(label),
        scale(logit_scale),
        shift(0),
        origin(max_of(row, row_classes < kProbe ? row_classes : kProbe)),
        exp{Shift<T>(shift = guess_shift<T>(origin, logit_scale)), LogitScale<T>(logit_scale)} {}

  template <bool kPrefetch>
  XENTROPY_INLINE_MEMBER void chunk(size_t begin, size_t n, T* e) {
    sums.template chunk<kSmooth, kPrefetch>(x, begin, n, target, exp, origin, e);
  }

  double distance(double value) const { return distance_from_top<T>(value, scale, shift); }

  // `row` holds the exps, or is null if only their sums are wanted.
  RowSums finish(T* row, T* scratch_chunk) const {
    RowSums s;
    const Sum others = sums.others.value();
    s.others = others.value;
    s.others_lost = others.lost;
    s.e_target = sums.e_target;
    const double total = s.total();
    const bool in_range = total >= Exp<T>::kMinTotal && total < Exp<T>::kMaxTotal;
    if (!in_range || origin == T(-INFINITY)) {
      return exp_any_row<T, kSmooth>(x, classes, target, max_of(x, classes), scale, row,
                                     scratch_chunk);
    }
    s.target_distance = distance(double(x[target]));
    s.origin = double(origin) * scale;
    s.origin_distance = distance(double(origin));
    s.differences = kSmooth ? sums.differences.value().value / kSmall * scale : 0;
    return s;
  }
};

template <class T>
XENTROPY_INLINE Settled settle_row(const Terms& t, const Block<T>& b, size_t r, const RowSums& s) {
  const double class_weight = b.weight ? b.weight[b.labels[r]] : 1;
  return settle<T>(t, class_weight, repeat_of(b, r), upstream_of(b, r), s);
}

template <class T, class Stores, bool kScaled, bool kSmooth>
void rows_with_gradient(const Terms& t, const Block<T>& b, T* scratch) {
  const size_t C = t.classes;
  T* e = scratch + kScratchChunk;
  Stores stores;
  for (size_t r = 0; r <= b.rows; ++r) {
    const bool reads = r < b.rows && b.labels[r] != kIgnored, writes = r > 0;
    const T* x = b.logits + ptrdiff_t(r < b.rows ? r : r - 1) * b.logits_stride;
    Finish<T> finish = {0, 0, 0};  // an ignored row: exps 0, gradient +0
    if (reads) {
      RowInFlight<T, kScaled, kSmooth> row(x, C, size_t(b.labels[r]), t.logit_scale);
      for (size_t i = 0; i < C; i += kChunk<T>) {
        const size_t n = C - i < kChunk<T> ? C - i : kChunk<T>;
        if (writes) stores.advance(e, i + n, x);
        row.template chunk<false>(i, n, e + i);
      }
      const RowSums sums = row.finish(e, scratch);
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

template <class T, bool kScaled, bool kSmooth>
void rows_loss(const Terms& t, const Block<T>& b, T* e) {
  for (size_t r = 0; r < b.rows; ++r) {
    b.loss[r] = 0;
    if (b.labels[r] == kIgnored) continue;
    RowInFlight<T, kScaled, kSmooth> row(b.logits + ptrdiff_t(r) * b.logits_stride, t.classes,
                                         size_t(b.labels[r]), t.logit_scale);
    for (size_t i = 0; i < t.classes; i += kChunk<T>) {
      const size_t n = t.classes - i < kChunk<T> ? t.classes - i : kChunk<T>;
      row.template chunk<true>(i, n, e);
    }
    b.loss[r] = settle_row(t, b, r, row.finish(nullptr, e)).loss;
  }
}

template <class T, bool kScaled, bool kSmooth>
void rows_stored(const Terms& t, const Block<T>& b, T* e, bool streamed) {
  if (b.gradient == nullptr) {
    rows_loss<T, kScaled, kSmooth>(t, b, e);
  } else if (streamed) {
    rows_with_gradient<T, StreamedStores<T, kSmooth>, kScaled, kSmooth>(t, b, e);
    stream_fence();
  } else {
    rows_with_gradient<T, RegularStores<T, kSmooth>, kScaled, kSmooth>(t, b, e);
  }
}

template <class T>
void rows(const Terms& t, const Block<T>& b, T* scratch, bool streamed) {
  const bool scaled = t.logit_scale != 1, smooth = t.label_smoothing != 0;
  if (scaled && smooth) return rows_stored<T, true, true>(t, b, scratch, streamed);
  if (scaled) return rows_stored<T, true, false>(t, b, scratch, streamed);
  if (smooth) return rows_stored<T, false, true>(t, b, scratch, streamed);
  return rows_stored<T, false, false>(t, b, scratch, streamed);
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
