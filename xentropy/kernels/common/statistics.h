// The statistics of a row. With x scaled, m the class of the largest logit, tail_sum the sum of the
// exps without e_m, total = tail_sum + e_m:
//
//     L = -log p_m = log1p(tail_sum / e_m),  lse = x_m + L,  loss = (x_m - x_target) + L
//     entropy = L + sum_c e_c (x_m - x_c) / total
//     sum of squares = (e_m^2 + sum_{c != m} e_c^2) / total^2
//
// No term of a sum is negative: nothing cancels, and L is exact where p_m is almost 1.
#pragma once
#include "common/log1p.h"
#include "common/peak.h"
#include "tier.h"

namespace xentropy {
namespace XENTROPY_TIER {

// Sums over a row, of which the class of the largest logit is no part: its distance is 0, and its
// square is added last. No exp may exceed the root of the largest T.
template <class T>
struct MomentSums {
  Total<T> distance;  // e_c (peak - x_c), x not scaled
  Total<T> square;    // e_c^2

  // Adds n classes. e is padded with zeros to a whole vector. 0 * inf = 0.
  void chunk(const T* x, const T* e, size_t n, T peak) {
    constexpr size_t L = kLanes<T>, K = kLine<T>;
    const Vec<T> top = splat(peak), zero = {};
    const auto term = [&](Vec<T> v, Vec<T> logits, Vec<T> sum) XENTROPY_INLINE_LAMBDA {
      return v == zero ? sum : fma(v, top - logits, sum);
    };
    Total<T> distances = distance, all = square;  // copies, which no other store can alias
    size_t i = 0;
    for (; i + 4 * K <= n; i += 4 * K) {
      for (size_t v = 0; v < K; v += L) {
        Vec<T> away = {}, squares = {};
        for (size_t q = 0; q < 4; ++q) {
          const size_t c = i + q * K + v;
          const Vec<T> each = load(e + c);
          away = term(each, load(x + c), away);
          squares = fma(each, each, squares);
        }
        distances.at[v / L].add(away);
        all.at[v / L].add(squares);
      }
    }
    for (; i < n; i += L) {
      const Vec<T> each = load(e + i);
      const Vec<T> logits = n - i < L ? load_first(x + i, n - i, top) : load(x + i);
      distances.at[i % K / L].add(term(each, logits, zero));
      all.at[i % K / L].add(each * each);
    }
    distance = distances;
    square = all;
  }
};

// The sums of a row. D is double, or a vector of doubles with one row per lane; logits are not
// scaled.
template <class D>
struct StatisticsSums {
  D peak, target;  // logits
  D tail_sum, e_peak;
  D distance;  // sum of e_c (peak - x_c)
  D square;    // sum of e_c^2, c != m
};

template <class D>
struct StatisticsOf {
  D lse, loss, entropy, max_log_prob, sum_squares;
};

// L is log1p(tail_sum / e_peak).
template <class D>
XENTROPY_INLINE StatisticsOf<D> statistics_of(const StatisticsSums<D>& s, D L, double scale) {
  const D total = s.tail_sum + s.e_peak;
  return {s.peak * scale + L, (s.peak - s.target) * scale + L, L + s.distance / total * scale,
          0 - L, (s.e_peak * s.e_peak + s.square) / (total * total)};
}

// Writes the numbers of row r.
template <class S>
XENTROPY_INLINE void put_statistics(const StatisticsBlock<S>& b, size_t r,
                                    const StatisticsOf<double>& s) {
  b.to.lse[r] = s.lse;
  b.to.loss[r] = s.loss;
  b.to.entropy[r] = s.entropy;
  b.to.max_log_prob[r] = s.max_log_prob;
  b.to.sum_squares[r] = s.sum_squares;
}

// The next smaller number; nan for -inf.
template <class T>
XENTROPY_INLINE Vec<T> next_below(Vec<T> v) {
  const IntVec<T> bits = (IntVec<T>)(v + T(0)), zero = {};  // -0 + 0 = +0
  const IntVec<T> least = (zero + 1) | (zero + 1) << (8 * sizeof(T) - 1);
  const IntVec<T> below = bits > zero ? bits - 1 : bits + 1;
  return (Vec<T>)(bits == zero ? least : below);
}

// How many of n logits are larger than `than`, or at least as large. kEqual: the latter.
template <bool kEqual, class S, class T>
size_t count_larger(const S* x, size_t n, T than) {
  size_t found = 0;
  for (size_t c = 0; c < n; ++c) found += kEqual ? value_of(x[c]) >= than : value_of(x[c]) > than;
  return found;
}

// The rank of class y: of equal logits the first ranks first.
template <class S>
size_t rank_of(const S* x, size_t classes, size_t y) {
  const auto target = value_of(x[y]);
  return count_larger<true>(x, y, target) + count_larger<false>(x + y, classes - y, target);
}

template <class S>
size_t first_nan(const S* x, size_t classes) {
  size_t c = 0;
  while (c < classes && value_of(x[c]) == value_of(x[c])) ++c;
  return c;
}

// A row without a softmax: it has nan, +inf, or nothing but -inf. `peak` counts if it has no nan.
template <class S, class T>
void statistics_without_softmax(const StatisticsBlock<S>& b, size_t r, const S* x, Peak<T> peak) {
  const size_t C = b.classes, nan = first_nan(x, C);
  const bool has_nan = nan < C;
  put_statistics(b, r, {has_nan ? NAN : double(peak.value), NAN, NAN, NAN, NAN});
  b.to.argmax[r] = int64_t(has_nan ? nan : peak.at);
  if (b.to.rank) b.to.rank[r] = int64_t(has_nan ? C : rank_of(x, C, size_t(b.labels[r])));
}

// Fallback for any row, from its maximum: three reads of the row. chunks: scratch, two chunks.
template <class S, class T = Arithmetic<S>>
void statistics_from_maximum(const StatisticsBlock<S>& b, size_t r, const S* x, T* chunks) {
  const size_t C = b.classes, y = b.labels ? size_t(b.labels[r]) : 0;
  const Peak<T> peak = peak_of(x, C);
  const LogitChunks<T> logits = chunks_of(x);
  const RowSums s =
      exps_from_maximum<T>({logits, C, peak.at, b.logit_scale, false, nullptr, chunks}, peak.value);
  if (s.tail_sum != s.tail_sum) return statistics_without_softmax(b, r, x, peak);
  MomentSums<T> sums;
  with_exp_of(peak.value, b.logit_scale, [&](const auto& exp) {
    for_chunks<T>(0, C, [&](size_t begin, size_t n) {
      Total<T> unused;
      const T* part = logits.at(begin, n, chunks + kChunk<T>);
      exp_chunk<false>(part, n, exp, chunks, unused);
      flush_row(chunks, n);
      if (peak.at - begin < n) chunks[peak.at - begin] = 0;
      sums.chunk(part, chunks, n, peak.value);
    });
  });
  const StatisticsSums<double> all = {
      double(peak.value), double(value_of(x[y])),      s.tail_sum,
      s.e_target,         sums.distance.value().value, sums.square.value().value};
  put_statistics(b, r, statistics_of(all, log1p_of(s.tail_sum / s.e_target), b.logit_scale));
  b.to.argmax[r] = int64_t(peak.at);
  if (b.to.rank) b.to.rank[r] = int64_t(rank_of(x, C, y));
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
