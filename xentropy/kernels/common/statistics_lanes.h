// The statistics of short rows, a row a lane: sums over classes are vertical, whatever the layout.
// groups/statistics.h transposes adjacent rows, columns/statistics.h takes a strided class axis as
// it is. For a batch of rows, as many as stay in the L1 cache:
//
//   1. class by class the maximum, its class, and how many classes rank before the target;
//   2. where the maximum was, the scratch gets a logit whose exp is 0: no sum contains it;
//   3. exps, and their sums, products with the distance from the maximum, and squares;
//   4. in float64 the numbers; rows out of range are computed again, one by one.
//
// Each step is done for the whole batch, so that no vector waits for what was just stored in parts,
// and logarithms overlap.
//
// Cost: per vector two loads, a store, one exp, 3 comparisons, 2 multiply-adds and 3 / 4 of two
// conversions and additions in float64; per VD of rows a logarithm and three divisions.
//
// Lanes are independent: no bit of a row depends on its neighbours or on its layout.
#pragma once
#include "common/lanes.h"
#include "common/statistics.h"
#include "common/workspace.h"

namespace xentropy {
namespace XENTROPY_TIER {

// The sums of step 3, a row a lane, and the exp of the maximum.
template <class T>
struct LaneMoments {
  LaneTotal<T> tail, distance, square;  // as in StatisticsSums
  Vec<T> e_peak;
};

// A batch of rows between the steps: numbers of rows, and of vectors of kLanes<T> rows.
template <class T>
struct LaneBatch {
  size_t rows;              // a multiple of kLanes<T>
  T* columns;               // vector by vector, kLanes<T> logits of each class
  T* target;                // the target's logit,
  LaneInt<T>* label;        // and its class
  T* peak;                  // the largest logit,
  LaneInt<T>* at;           // and its first class
  LaneInt<T>* rank;         // how many classes rank before the target
  LaneMoments<T>* moments;  // of vectors
  T* chunks;                // for a row out of range

  LaneBatch(size_t classes, Arena& arena) : rows(batch_rows<T>(classes)) {
    constexpr size_t L = kLanes<T>;
    columns = take<T>(arena, rows * classes + L * L);  // a transposition fills its last vectors
    target = take<T>(arena, rows);
    label = take<LaneInt<T>>(arena, rows);
    peak = take<T>(arena, rows);
    at = take<LaneInt<T>>(arena, rows);
    rank = take<LaneInt<T>>(arena, rows);
    moments = take<LaneMoments<T>>(arena, rows / L);
    chunks = take_chunks<T>(arena);
    for (size_t i = 0; arena.start && i < rows; ++i) target[i] = 0, label[i] = 0;
  }
};

template <class T>
XENTROPY_INLINE bool is_counted(const StatisticsBlock<T>& b, size_t r) {
  return r < b.rows && !(b.labels && b.labels[r] == kIgnored);
}
template <class T>
XENTROPY_INLINE size_t count_rows(const StatisticsBlock<T>& b, size_t r, size_t n) {
  size_t found = 0;
  for (size_t i = r; i < r + n; ++i) found += is_counted(b, i);
  return found;
}

// Step 1 for the vector of rows at i: takes their classes one by one.
template <class T>
struct LaneRanks {
  Vec<T> target, below, peak = splat(T(-INFINITY));
  IntVec<T> label, own = {}, at = {}, after = {};  // after: how many do not rank before the target

  LaneRanks(const LaneBatch<T>& s, size_t i)
      : target(load(s.target + i)),
        below(next_below<T>(target)),
        label(load_integers<T>(s.label + i)) {}

  XENTROPY_INLINE_MEMBER void take_class(Vec<T> x) {
    const auto larger = x > peak;
    at = larger ? own : at;
    peak = max(x, peak);  // not nan
    // Before the target equal ones rank before it too: those above the next smaller number.
    const Vec<T> than = label > own ? below : target;
    after = x <= than ? after + 1 : after;  // false for nan
    own += 1;
  }

  void put(const LaneBatch<T>& s, size_t i) const {
    store(s.peak + i, peak);
    store_integers<T>(s.at + i, at);
    store_integers<T>(s.rank + i, own - after);
  }
};

// Adds kClasses classes, at most 4. Products with the distance are rounded before they are added:
// in a fused operation exps below kMinExactExp, which differ between tiers, would decide ties.
template <size_t kClasses, class T, class Exp>
XENTROPY_INLINE void add_moments(const T* columns, const Exp& exp, Vec<T> anchor, Vec<T> peak,
                                 LaneMoments<T>* sums) {
  Vec<T> x[kClasses], e[kClasses], square = {};
  for (size_t q = 0; q < kClasses; ++q) x[q] = exp.clamp(load(columns + q * kLanes<T>));
  exp.of_clamped(x, anchor, e);
  for (size_t q = 0; q < kClasses; ++q) square = q ? fma(e[q], e[q], square) : e[q] * e[q];
  sums->tail.add(sum_of_few(e));
  for (size_t q = 0; q < kClasses; ++q) e[q] *= peak - x[q];  // finite: 0 at -inf
  sums->distance.add(sum_of_few(e));
  sums->square.add(square);
}

// Step 3.
template <class T, class Exp>
LaneMoments<T> sum_lanes(const T* columns, size_t classes, const Exp& exp, Vec<T> anchor,
                         Vec<T> peak) {
  constexpr size_t L = kLanes<T>;
  LaneMoments<T> sums;
  size_t c = 0;
  for (; c + 4 <= classes; c += 4) add_moments<4>(columns + c * L, exp, anchor, peak, &sums);
  const T* rest = columns + c * L;
  if (classes - c == 1) add_moments<1>(rest, exp, anchor, peak, &sums);
  if (classes - c == 2) add_moments<2>(rest, exp, anchor, peak, &sums);
  if (classes - c == 3) add_moments<3>(rest, exp, anchor, peak, &sums);
  sums.e_peak = exp(peak, anchor);
  return sums;
}

// Step 4 for the kLanes<double> rows at r, which are i in the batch. Returns where the numbers are
// right.
template <class T>
XENTROPY_INLINE IntVec<double> put_lanes(const StatisticsBlock<T>& b, size_t r,
                                         const LaneBatch<T>& s, size_t i) {
  const LaneMoments<T>& all = s.moments[i / kLanes<T>];
  const size_t h = i % kLanes<T> / kLanes<double>;
  const VD tail_sum = half_of(all.tail, h), e_peak = half_of(all.e_peak, h);
  const StatisticsSums<VD> sums = {
      load_wide(s.peak + i),    load_wide(s.target + i), tail_sum, e_peak,
      half_of(all.distance, h), half_of(all.square, h)};
  const auto n = statistics_of(sums, log1p_lanes<T>(tail_sum / e_peak), b.logit_scale);
  store(b.to.lse + r, n.lse);
  store(b.to.loss + r, n.loss);
  store(b.to.entropy + r, n.entropy);
  store(b.to.max_log_prob + r, n.max_log_prob);
  store(b.to.sum_squares + r, n.sum_squares);
  for (size_t q = 0; q < kLanes<double>; ++q) {
    b.to.argmax[r + q] = s.at[i + q];
    if (b.to.rank) b.to.rank[r + q] = s.rank[i + q];
  }
  return (IntVec<double>)sums_in_range<T>(tail_sum, e_peak);
}

// Step 4. Rows are those of the block from `first` on.
template <class T, class Rows>
void put_batch(const StatisticsBlock<T>& b, size_t first, size_t n, const LaneBatch<T>& s,
               const Rows& rows) {
  constexpr size_t D = kLanes<double>;
  for (size_t i = 0; i < n; i += D) {
    const IntVec<double> fine = put_lanes(b, first + i, s, i);
    for (size_t q = 0; any(~fine) && q < D; ++q) {
      const size_t r = first + i + q;
      if (!fine[q] && is_counted(b, r)) statistics_from_maximum(b, r, rows.row(r), s.chunks);
    }
  }
}

// Steps 1 and 2 for the n rows from `first` on.
template <class T, class Rows>
void rank_batch(const StatisticsBlock<T>& b, size_t first, size_t n, T lowest,
                const LaneBatch<T>& s, const Rows& rows) {
  constexpr size_t L = kLanes<T>;
  const size_t C = b.classes;
  for (size_t i = 0; b.labels && i < n; ++i) {
    const int64_t y = b.labels[first + i];
    s.label[i] = LaneInt<T>(y < 0 ? 0 : y);
    s.target[i] = y < 0 ? 0 : rows.logit(first + i, size_t(y));
  }
  for (size_t i = 0; i < n; i += L) rows.rank(first + i, s, i);
  for (size_t i = 0; i < (n + L - 1) / L * L; ++i) {
    s.columns[i / L * L * C + size_t(s.at[i]) * L + i % L] = lowest;
  }
}

// All rows of a block. Of row r, rows.logit(r, c) is a logit, rows.row(r) are all, contiguous;
// rows.rank(r, batch, i) is step 1 for the vector at r, which is i in the batch, and copies its
// logits to the columns of the batch.
template <bool kScaled, class T, class Rows>
void statistics_of_lanes(const StatisticsBlock<T>& b, const LaneBatch<T>& s, const Rows& rows) {
  constexpr size_t L = kLanes<T>;
  const AnchoredExp<T, kScaled> exp(b.logit_scale);
  const Anchors<T> anchors(b.logit_scale);
  for (size_t first = 0, n; first < b.rows; first += n) {
    n = b.rows - first < s.rows ? b.rows - first : s.rows;
    if (count_rows(b, first, n) == 0) continue;
    rank_batch(b, first, n, exp.lowest[0], s, rows);
    for (size_t i = 0; i < n; i += L) {
      const Vec<T> peak = load(s.peak + i);
      s.moments[i / L] = sum_lanes(s.columns + i * b.classes, b.classes, exp, anchors(peak), peak);
    }
    put_batch(b, first, n, s, rows);
  }
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
