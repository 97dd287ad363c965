// Everything of a row in one read, class axis contiguous: see common/statistics.h.
//
// Cost: one read of memory and one exp per element, as the loss alone; then, chunk by chunk from
// the L1 cache, a subtraction, two fused multiply-adds and a quarter of the additions in float64
// for entropy and squares, and a comparison for the rank, which chunks without a larger logit save.
// The maximum is found in the same pass (rows/tail.h). Where a larger one turns up, the distances
// so far grow by the difference times the exps so far: no sum is made again.
//
// A row whose range was not guessed right is computed again from its maximum.
#pragma once
#include "common/statistics.h"
#include "common/workspace.h"
#include "rows/tail.h"

namespace xentropy {
namespace XENTROPY_TIER {

// The classes that rank before the target, chunk by chunk. Before the target, equal ones do too:
// those above the next smaller number. The target's own chunk is counted class by class.
template <class S>
struct RankCount {
  typedef Arithmetic<S> T;
  typedef decltype(IntVec<T>{}[0] + 0) Int;

  size_t target;
  T at, below;  // the target's logit, and the next smaller number
  size_t total = 0;

  RankCount(const S* x, size_t y) : target(y), at(value_of(x[y])), below(next_below(at)) {}

  static T next_below(T v) {
    Int bits;
    if (v == 0) v = 0;  // -0 has another representation
    __builtin_memcpy(&bits, &v, sizeof v);
    bits = v > 0 ? bits - 1 : v < 0 ? bits + 1 : Int(Int(1) << (8 * sizeof(T) - 1)) + 1;
    __builtin_memcpy(&v, &bits, sizeof v);
    return v;
  }

  // most: a vector with the largest logit of the chunk.
  XENTROPY_INLINE_MEMBER void chunk(const S* x, size_t begin, size_t n, Vec<T> most) {
    if (target - begin < n) {
      total += count_larger<true>(x + begin, target - begin, at) +
               count_larger<false>(x + target, begin + n - target, at);
      return;
    }
    const Vec<T> than = splat(begin < target ? below : at), none = splat(T(-INFINITY));
    if (!any(most > than)) return;
    size_t found = 0, i = 0;  // not a member, which would be stored each time
    for (; i + kLanes<T> <= n; i += kLanes<T>) found += lanes_larger(load(x + begin + i), than);
    if (i < n) found += lanes_larger(load_first(x + begin + i, n - i, none), than);
    total += found;
  }
};

// The exps of the row are put so much lower that the squares of all that pass as in range are
// finite: the largest probed one near 2^12 (2^10 in float64), and totals below 2^62 (2^510).
template <class T>
constexpr int kLower = sizeof(T) == 4 ? 38 : 390;
template <class T>
constexpr double kLowerFactor = sizeof(T) == 4 ? 0x1p38 : 0x1p390;

template <class T>
bool low_in_range(const RowSums& s) {
  return total_in_range<T>(s.total() * kLowerFactor<T>) && !needs_flush<T>(s.tail_sum);
}

// kScaled: logit_scale is not 1.
template <class S, bool kScaled>
void statistics_row(const StatisticsBlock<S>& b, size_t r, Arithmetic<S>* chunks) {
  typedef Arithmetic<S> T;
  const S* x = b.x + ptrdiff_t(r) * b.x_stride;
  const size_t y = b.labels ? size_t(b.labels[r]) : 0;
  const bool ranked = b.to.rank && value_of(x[y]) > T(-INFINITY);
  TailSums<S, kScaled> tail(x, b.classes, b.logit_scale, kLower<T>);
  MomentSums<T> sums;
  RankCount<S> rank(x, y);
  double moved = 0, squares = 0;
  const auto larger = [&](T peak, const Total<T>& before) {
    if (tail.e_peak == 0) return;
    moved +=
        (double(peak) - double(tail.peak)) * (before.value().value + tail.passed + tail.e_peak);
    squares += tail.e_peak * tail.e_peak;
  };
  for_chunks<T>(0, b.classes, [&](size_t i, size_t n) XENTROPY_INLINE_LAMBDA {
    const Vec<T> most = tail.template chunk<true>(i, n, chunks, larger);
    sums.chunk(x + i, chunks, n, tail.peak);
    if (ranked) rank.chunk(x, i, n, most);
  });
  RowSums s;
  tail.sums(&s);
  if (!low_in_range<T>(s)) return statistics_from_maximum(b, r, x, chunks);
  const StatisticsSums<double> all = {double(tail.peak),
                                      double(value_of(x[y])),
                                      s.tail_sum,
                                      s.e_target,
                                      sums.distance.value().value + moved,
                                      sums.square.value().value + squares};
  put_statistics(b, r, statistics_of(all, log1p_of(s.tail_sum / s.e_target), b.logit_scale));
  b.to.argmax[r] = int64_t(tail.at);
  if (b.to.rank) b.to.rank[r] = int64_t(ranked ? rank.total : rank_of(x, b.classes, y));
}

template <class S>
size_t statistics_bytes(size_t) {
  typedef Arithmetic<S> T;
  Arena counted = {nullptr, 0};
  take_chunks<T>(counted);
  return counted.used;
}

template <class S>
void statistics(const StatisticsBlock<S>& b, char* workspace) {
  Arena arena = {workspace, 0};
  Arithmetic<S>* chunks = take_chunks<Arithmetic<S>>(arena);
  with_scaled(b.logit_scale, [&](auto scaled) {
    for (size_t r = 0; r < b.rows; ++r) {
      if (b.labels && b.labels[r] == kIgnored) continue;
      statistics_row<S, scaled.value>(b, r, chunks);
    }
  });
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
