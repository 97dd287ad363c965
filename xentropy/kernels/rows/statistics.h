// Everything of a row in one read, class axis contiguous: see common/statistics.h.
//
// Cost: one read of memory and one exp per element, as the loss alone; then, chunk by chunk from
// the L1 cache, a subtraction, two products and a square for entropy and squares, and a comparison
// for the rank. The maximum is found in the same pass (rows/tail.h). Where a larger one turns up,
// the distances so far grow by the difference times the exps so far: no sum is made again.
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
  T at, below;  // the target's logit, and the next smaller number; kNever: no class is larger
  IntVec<T> found = {};
  size_t more = 0;

  RankCount(const S* x, size_t y) : target(y), at(value_of(x[y])), below(next_below(at)) {}

  static T next_below(T v) {
    Int bits;
    if (v == 0) v = 0;  // -0 has another representation
    __builtin_memcpy(&bits, &v, sizeof v);
    bits = v > 0 ? bits - 1 : v < 0 ? bits + 1 : Int(Int(1) << (8 * sizeof(T) - 1)) + 1;
    __builtin_memcpy(&v, &bits, sizeof v);
    return v;
  }

  XENTROPY_INLINE_MEMBER void chunk(const S* x, size_t begin, size_t n) {
    if (target - begin < n) {
      more += count_larger<true>(x + begin, target - begin, at) +
              count_larger<false>(x + target, begin + n - target, at);
      return;
    }
    const Vec<T> than = splat(begin < target ? below : at), none = splat(T(-INFINITY));
    for (size_t i = 0; i < n; i += kLanes<T>) {
      const S* p = x + begin + i;
      found -= (IntVec<T>)((n - i >= kLanes<T> ? load(p) : load_first(p, n - i, none)) > than);
    }
  }

  size_t total() const {
    size_t sum = more;
    for (size_t i = 0; i < kLanes<T>; ++i) sum += size_t(found[i]);
    return sum;
  }
};

// kScaled: logit_scale is not 1.
template <class S, bool kScaled>
void statistics_row(const StatisticsBlock<S>& b, size_t r, Arithmetic<S>* chunks) {
  typedef Arithmetic<S> T;
  const S* x = b.x + ptrdiff_t(r) * b.x_stride;
  const size_t y = b.labels ? size_t(b.labels[r]) : 0;
  const bool ranked = b.labels && value_of(x[y]) > T(-INFINITY);
  TailSums<S, kScaled> tail(x, b.classes, b.logit_scale);
  MomentSums<T> sums;
  RankCount<S> rank(x, y);
  double moved = 0, squares = 0;
  const auto larger = [&](T peak, const Total<T>& before) {
    if (tail.e_peak == 0) return;
    moved +=
        (double(peak) - double(tail.peak)) * (before.value().value + tail.passed + tail.e_peak);
    const double e = tail.e_peak * double(kSquareUnit<T>);
    squares += e * e;
  };
  for_chunks<T>(0, b.classes, [&](size_t i, size_t n) XENTROPY_INLINE_LAMBDA {
    tail.template chunk<true>(i, n, chunks, larger);
    sums.chunk(x + i, chunks, n, tail.peak);
    if (ranked) rank.chunk(x, i, n);
  });
  RowSums s;
  if (!tail.sums(&s)) return statistics_from_maximum(b, r, x, chunks);
  const StatisticsSums<double> all = {double(tail.peak),
                                      double(value_of(x[y])),
                                      s.tail_sum,
                                      s.e_target,
                                      sums.distance.value().value + moved,
                                      sums.square.value().value + squares};
  put_statistics(b, r, statistics_of<T>(all, log1p_of(s.tail_sum / s.e_target), b.logit_scale));
  b.to.argmax[r] = int64_t(tail.at);
  if (b.labels) b.to.rank[r] = int64_t(ranked ? rank.total() : rank_of(x, b.classes, y));
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
