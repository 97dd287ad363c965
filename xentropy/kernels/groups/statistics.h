// Everything of short adjacent rows, in groups as in groups/labels.h: see common/statistics.h.
//
//   1. peaks: the maximum of every row, and from it the row's k;
//   2. exp of all elements; the exp of the maximum is taken out;
//   3. the exps become their squares and their products with the distance from the maximum, and a
//      tree sums each of the three;
//   4. the ranks: comparisons with the target, summed by the same tree;
//   5. in vectors of rows the numbers; rows out of range are computed again, one by one.
//
// Cost: that of the entropy in groups/softmax.h, one more sum, and a comparison per element.
#pragma once
#include "common/statistics.h"
#include "groups/loop.h"
#include "groups/settle.h"

namespace xentropy {
namespace XENTROPY_TIER {

template <class T>
struct StatisticsScratch {
  GroupScratch<T> s;
  T* squares;
  double *square, *square_lost, *ranks;

  StatisticsScratch(size_t classes, Arena& arena) : s(classes, arena) {
    const size_t rows = group_rows(classes);
    squares = take<T>(arena, rows * classes + kGroupPadding);
    square = take<double>(arena, rows);
    square_lost = take<double>(arena, rows);
    ranks = take<double>(arena, rows);
  }
};

// Steps 1 and 2. g.place: the index of the maximum in the group.
template <class T>
void exps_without_peaks(const T* x, const T* next, double scale, const RowShape<T>& shape,
                        const GroupScratch<T>& s) {
  const GroupRows<T>& g = s.g;
  peak_rows(x, g.padded, shape, scale, g.anchor, g.peak);
  with_scaled(scale, [&](auto scaled) {
    exp_rows<T, scaled.value>(x, shape.classes, scale, s.index, next, g);
  });
  for (size_t q = 0; q < g.rows; ++q) {
    g.place[q] = uint32_t(peak_index(x, q, shape, g.peak[q]));
    extract_exp(q, g.place[q], g);
  }
}

// Step 3. Overwrites the exps.
template <class T>
void sum_moments(const T* x, const RowShape<T>& shape, const StatisticsScratch<T>& scratch) {
  constexpr size_t L = kLanes<T>;
  const GroupRows<T> g = scratch.s.g;
  const size_t C = shape.classes;
  const T* index = scratch.s.index;
  T* squares = scratch.squares;
  sum_rows<false>(g.exps, g.padded, shape, g.tail_sum, g.tail_lost);
  for (size_t q = 0; q < g.padded; q += L) {
    const Vec<T> peaks = load(g.peak + q);
    for (size_t i = 0; i < L * C; i += L) {
      const size_t at = q * C + i;
      const Vec<T> e = load(g.exps + at);
      const Vec<T> away = permute(peaks, (IntVec<T>)load(index + i)) - load(x + at);
      store(squares + at, e * e);
      store(g.exps + at, e == Vec<T>{} ? Vec<T>{} : e * away);  // 0 * inf = 0
    }
  }
  sum_rows<false>(g.exps, g.padded, shape, g.differences, g.differences_lost);
  sum_rows<false>(squares, g.padded, shape, scratch.square, scratch.square_lost);
}

// How many classes of the row at x rank before class y, in lanes of float64.
XENTROPY_INLINE VD lanes_of(VF v) { return widen_lower(v) + widen_upper(v); }
XENTROPY_INLINE VD lanes_of(VD v) { return v; }
template <class T>
XENTROPY_INLINE VD count_before(const T* x, const RowShape<T>& shape, T target, size_t y) {
  constexpr size_t L = kLanes<T>;
  Vec<T> classes;
  for (size_t i = 0; i < L; ++i) classes[i] = T(i);
  const Vec<T> at = splat(target), own = splat(T(y)), one = splat(T(1)), step = splat(T(L));
  Vec<T> found = {};
  for (size_t j = 0; j <= shape.vectors; ++j, classes += step) {
    const Vec<T> raw = load(x + j * L);
    const Vec<T> v = j < shape.vectors ? raw : shape.last_or_minus_inf(raw);
    const auto before = (v > at) | ((v == at) & (classes < own));
    found += before ? one : Vec<T>{};
  }
  return lanes_of(found);
}

// Step 4. Rows that are ignored count against class 0.
template <class T>
void count_ranks(const T* x, const int64_t* labels, const RowShape<T>& row, const GroupRows<T>& g,
                 double* ranks) {
  const RowShape<T> shape = row;
  for (size_t q = 0; q < g.rows; q += kLanes<double>) {
    VD v[kLanes<double>];
    for (size_t i = 0; i < kLanes<double>; ++i) {
      const T* p = x + (q + i) * shape.classes;
      const size_t y = q + i < g.rows ? class_of(labels[q + i]) : 0;
      g.target[q + i] = double(p[y]);
      v[i] = count_before(p, shape, p[y], y);
    }
    store(ranks + q, tree(v, [](auto step, VD a, VD b) XENTROPY_INLINE_LAMBDA {
            return step.lower(a, b) + step.upper(a, b);
          }));
  }
}

// Step 5 for the rows [q, q + kLanes<double>). Returns in which lanes the numbers are right.
template <class T>
XENTROPY_INLINE IntVec<double> put_lanes(const StatisticsBlock<T>& b, size_t first, size_t q,
                                         const StatisticsScratch<T>& scratch) {
  const GroupRows<T>& g = scratch.s.g;
  const VD tail_sum = load(g.tail_sum + q), e_peak = load_wide(g.e_target + q);
  const StatisticsSums<VD> sums = {
      load_wide(g.peak + q),   load(g.target + q),      tail_sum, e_peak,
      load(g.differences + q), load(scratch.square + q)};
  const auto s = statistics_of(sums, log1p_lanes<T>(tail_sum / e_peak), b.logit_scale);
  const size_t r = first + q, n = g.rows - q;
  store_losses(b.to.lse + r, s.lse, n);
  store_losses(b.to.loss + r, s.loss, n);
  store_losses(b.to.entropy + r, s.entropy, n);
  store_losses(b.to.max_log_prob + r, s.max_log_prob, n);
  store_losses(b.to.sum_squares + r, s.sum_squares, n);
  return (IntVec<double>)sums_in_range<T>(tail_sum, e_peak);
}

// Step 5.
template <class T>
void put_group(const StatisticsBlock<T>& b, size_t first, const T* x,
               const StatisticsScratch<T>& scratch) {
  const GroupRows<T>& g = scratch.s.g;
  for (size_t q = 0; q < g.rows; ++q) {
    b.to.argmax[first + q] = int64_t(g.place[q] - q * b.classes);
    if (b.to.rank) b.to.rank[first + q] = int64_t(scratch.ranks[q]);
  }
  for (size_t q = 0; q < g.rows; q += kLanes<double>) {
    const IntVec<double> fine = put_lanes(b, first, q, scratch);
    if (!any(~fine)) continue;
    for (size_t i = q; i < q + kLanes<double> && i < g.rows; ++i) {
      const bool counts = b.labels == nullptr || b.labels[first + i] != kIgnored;
      if (fine[i - q] || !counts) continue;
      statistics_from_maximum(b, first + i, x + i * b.classes, scratch.s.chunks);
    }
  }
}

template <class T>
size_t statistics_groups_bytes(size_t classes) {
  return bytes_of<StatisticsScratch<T>>(classes);
}

template <class T>
void statistics_groups(const StatisticsBlock<T>& b, char* workspace) {
  const size_t C = b.classes;
  Arena arena = {workspace, 0};
  StatisticsScratch<T> scratch(C, arena);
  GroupScratch<T>& s = scratch.s;
  const RowShape<T> shape(C);
  index_rows(C, s.index);
  for (size_t q = 0; q < group_rows(C); ++q) s.g.e_target[q] = 0, s.g.target[q] = 0;
  for_groups(b.x, b.labels, b.rows, C, s, [&](const Group<T>& at) {
    exps_without_peaks(at.x, at.next, b.logit_scale, shape, s);
    sum_moments(at.x, shape, scratch);
    if (b.to.rank) count_ranks(at.x, b.labels + at.first, shape, s.g, scratch.ranks);
    put_group(b, at.first, at.x, scratch);
  });
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
