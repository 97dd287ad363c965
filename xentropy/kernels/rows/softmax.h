// softmax, log_softmax, log-sum-exp and entropy of rows, class axis contiguous. With m the index of
// a row's maximum and tail_sum the sum of the exps without e_m:
//
//     p_c = e_c / total
//     L = -log p_m = log1p(tail_sum / e_m),  log p_c = (x_c - x_m) - L,  lse = x_m + L
//     entropy = sum_c p_c (x_m - x_c) + L     (no term is negative: nothing cancels)
//
// Cost: one exp per element, each element read once and written once, by the pipeline of
// rows/labels.h: while the exps of a row are computed, chunk by chunk, the previous row is stored.
// softmax scales the exps, which are kept in a scratch row. log_softmax reads the row again, from
// L2, because x - x_m is exact where the logarithm of an exp is not. The maximum is found in the
// same pass, see TailSums. The entropy reads a row three times and takes two exps per element.
#pragma once
#include "common/log_softmax.h"
#include "rows/tail.h"
#include "common/log1p.h"
#include "common/workspace.h"
#include "rows/writers.h"

namespace xentropy {
namespace XENTROPY_TIER {

// Fallback for any row, from its maximum.
template <class T>
RowLog<T> log_from_maximum(const T* x, size_t classes, T* chunk) {
  const Peak<T> peak = peak_of(x, classes);
  const RowSums s =
      exps_from_maximum<T>({chunks_of(x), classes, peak.at, 1, false, nullptr, chunk}, peak.value);
  return {peak.value, log1p_of(s.tail_sum / s.e_target)};
}

// RowLog from the sums of a row.
template <class T>
RowLog<T> log_of_row(const TailSums<T>& row, T* chunk) {
  RowSums s;
  if (!row.sums(&s)) return log_from_maximum(row.x, row.classes, chunk);
  return {row.peak, log1p_of(s.tail_sum / s.e_target)};
}

// For softmax: the exps of a row, chunk by chunk, and their total.
template <class T>
struct RowTotal {
  const T* x;
  size_t classes;
  DirectExp<T, false> exp;
  Total<T> total;

  RowTotal(const T* row, size_t n) : x(row), classes(n), exp(guessed_exp(row, n)) {}

  XENTROPY_INLINE_MEMBER void chunk(size_t begin, size_t n, T* e) {
    exp_chunk<false>(x + begin, n, exp, e, total);
  }

  bool in_range() const { return total_in_range<T>(total.value().value); }

  // Returns the map from exps to probabilities. e holds the exps; if k was wrong, they are computed
  // again.
  UnbiasedMap<T> finish(T* e, T* scratch_chunk) const {
    Sum sum = total.value();
    if (!in_range()) {
      const Peak<T> peak = peak_of(x, classes);
      const RowSums s = exps_from_maximum<T>(
          {chunks_of(x), classes, peak.at, 1, false, e, scratch_chunk}, peak.value);
      e[peak.at] = T(s.e_target);
      sum = s.exact_total();
    }
    const double factor = double(T(1 / sum.value));
    const double missed = __builtin_fma(-factor, sum.value, 1) - factor * sum.lost;
    return GradientFactors<T>{T(factor), T(missed / sum.value), T(0)};
  }
};

template <class T>
XENTROPY_INLINE const T* row_of(const SoftmaxBlock<T>& b, size_t r) {
  return b.x + ptrdiff_t(r) * b.x_stride;
}

// Stores: RegularStores or StreamedStores.
template <class T, template <class, class> class Stores>
void softmax_rows(const SoftmaxBlock<T>& b, const RowWorkspace<T>& w) {
  T* e = w.exps;
  Stores<T, UnbiasedMap<T>> stores;
  for (size_t r = 0; r < b.rows; ++r) {
    RowTotal<T> row(row_of(b, r), b.classes);
    for_chunks<T>(0, b.classes, [&](size_t i, size_t n) XENTROPY_INLINE_LAMBDA {
      if (r > 0) stores.advance(e, i + n, row.x);
      row.chunk(i, n, e + i);
    });
    stores.begin_row(b.out + ptrdiff_t(r) * b.out_stride, b.classes, row.finish(e, w.chunks));
  }
  stores.advance(e, b.classes, row_of(b, b.rows - 1));
  stores.flush();
}

// A single row needs no scratch row, which might be as large as the input of the call: the exps are
// written to the result. In place that is possible only after the first pass has shown that k is
// right, so the exps are computed twice.
template <class T>
void softmax_row(const SoftmaxBlock<T>& b, T* chunk) {
  RowTotal<T> row(b.x, b.classes), again = row;
  const auto pass = [&](RowTotal<T>& sums, bool stored) {
    for_chunks<T>(0, b.classes, [&](size_t i, size_t n) {
      T* e = stored && n == kChunk<T> ? b.out + i : chunk;
      sums.chunk(i, n, e);
      if (stored && e == chunk) __builtin_memcpy(b.out + i, chunk, n * sizeof(T));
    });
  };
  const bool in_place = b.out == b.x;
  pass(row, !in_place);
  if (in_place && row.in_range()) pass(again, true);
  RegularStores<T, UnbiasedMap<T>> stores;
  stores.begin_row(b.out, b.classes, row.finish(b.out, chunk));
  stores.advance(b.out, b.classes, b.out);
}

// Stores as above.
template <class T, template <class, class> class Stores>
void log_softmax_rows(const SoftmaxBlock<T>& b, T* scratch) {
  Stores<T, LogOf<T>> stores;
  for (size_t r = 0; r < b.rows; ++r) {
    TailSums<T> row(row_of(b, r), b.classes);
    for_chunks<T>(0, b.classes, [&](size_t i, size_t n) XENTROPY_INLINE_LAMBDA {
      if (r > 0) stores.advance(row_of(b, r - 1), i + n, row.x);
      row.template chunk<false>(i, n, scratch);
    });
    const RowLog<T> log = log_of_row(row, scratch);
    const LogOf<T> log_of = {splat(log.peak), splat(T(log.log1p_tail))};
    stores.begin_row(b.out + ptrdiff_t(r) * b.out_stride, b.classes, log_of);
  }
  const T* x = row_of(b, b.rows - 1);
  stores.advance(x, b.classes, x);
  stores.flush();
}

// sum_c e_c (m - x_c), chunk by chunk.
template <class T>
double sum_distances(const T* x, size_t classes, T peak, T* chunk) {
  return with_exp_of(peak, 1, [&](const auto& exp) {
    MassAccumulator<T> sums;
    for_chunks<T>(0, classes, [&](size_t b, size_t n) {
      Total<T> unused;
      exp_chunk<false>(x + b, n, exp, chunk, unused);
      flush_row(chunk, n);
      sums.chunk(x + b, chunk, n, peak);
    });
    return sums.distance();
  });
}

template <class T>
double entropy_of_row(const T* x, size_t classes, T* chunk) {
  const Peak<T> m = peak_of(x, classes);
  const RowSums s =
      exps_from_maximum<T>({chunks_of(x), classes, m.at, 1, false, nullptr, chunk}, m.value);
  const double total = s.total();
  if (total != total) return NAN;
  return sum_distances(x, classes, m.value, chunk) / total + log1p_of(s.tail_sum / s.e_target);
}

template <class T>
void reduce_rows(const SoftmaxBlock<T>& b, T* chunk) {
  for (size_t r = 0; r < b.rows; ++r) {
    const T* x = row_of(b, r);
    if (b.what == Result::kEntropy) {
      b.value[r] = entropy_of_row(x, b.classes, chunk);
      continue;
    }
    TailSums<T> row(x, b.classes);
    for_chunks<T>(0, b.classes, [&](size_t i, size_t n) XENTROPY_INLINE_LAMBDA {
      row.template chunk<true>(i, n, chunk);
    });
    b.value[r] = log_sum_exp(log_of_row(row, chunk), x, b.classes);
  }
}

// softmax or log_softmax. Stores as above.
template <class T, template <class, class> class Stores>
void normalize_rows(const SoftmaxBlock<T>& b, const RowWorkspace<T>& w) {
  return b.what == Result::kSoftmax ? softmax_rows<T, Stores>(b, w)
                                    : log_softmax_rows<T, Stores>(b, w.chunks);
}

template <class T>
size_t softmax_bytes(Result what, size_t classes, size_t rows) {
  return bytes_of<RowWorkspace<T>>(classes, what == Result::kSoftmax && rows > 1);
}

template <class T>
void softmax(const SoftmaxBlock<T>& b, char* workspace, bool streamed) {
  const bool keeps_exps = b.what == Result::kSoftmax && b.rows > 1;
  Arena arena = {workspace, 0};
  const RowWorkspace<T> w(b.classes, keeps_exps, arena);
  if (b.out == nullptr) return reduce_rows(b, w.chunks);
  if (b.what == Result::kSoftmax && !keeps_exps) return softmax_row(b, w.chunks);
  if (!streamed) return normalize_rows<T, RegularStores>(b, w);
  normalize_rows<T, StreamedStores>(b, w);
  stream_fence();
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
