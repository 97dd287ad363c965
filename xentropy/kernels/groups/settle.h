// Losses and factors of the rows of a group from their sums, by common/settle_lanes.h.
#pragma once
#include "groups/shared.h"
#include "groups/sums.h"
#include "groups/targets.h"
#include "common/settle_lanes.h"

namespace xentropy {
namespace XENTROPY_TIER {

// The verdict on a row. kGradientFallback: its factors are not normal numbers, and its gradient is
// computed from its maximum. kRowFallback: its loss and its gradient are computed from its maximum.
constexpr int64_t kSettled = 0, kGradientFallback = 1, kRowFallback = 3;

// The first kLanes<double> elements of p[0..n), padded with 0.
XENTROPY_INLINE VD load_rows(const double* p, size_t n) {
  return n >= kLanes<double> ? load(p) : load_first(p, n, VD{});
}

template <class T>
XENTROPY_INLINE void store_factors(const LaneFactors<T>& f, bool biased, size_t q,
                                   const GroupRows<T>& g) {
  store_narrow(g.factor + q, f.factor);
  store_narrow(g.target_entry + q, f.target_entry);
  if (sizeof(T) == 8) store_narrow(g.rest + q, f.rest);
  if (biased) store_narrow(g.bias + q, f.bias);
}

// Stores kLanes<double> losses, or the first n if these are fewer.
XENTROPY_INLINE void store_losses(double* to, VD loss, size_t n) {
  if (n >= kLanes<double>) {
    store(to, loss);
  } else {
    store_first(to, loss, n);
  }
}

// Which rows are not ignored. n: the number of labels.
XENTROPY_INLINE IntVec<double> rows_not_ignored(const int64_t* labels, size_t n) {
  return (IntVec<double>)load_rows(reinterpret_cast<const double*>(labels), n) >= 0;
}

template <class T>
XENTROPY_INLINE void store_quotients(size_t q, VD tail_sum, VD lost, const GroupRows<T>& g) {
  const LaneQuotients sums = quotients(tail_sum, lost, load_wide(g.e_target + q));
  store(g.tail_sum + q, tail_sum);
  if (sizeof(T) == 8) store(g.tail_lost + q, lost);
  store(g.odds + q, sums.odds);
  if (sizeof(T) == 4) store(g.inverse + q, sums.inverse);
}
// The sums of the exps, and the divisions of what follows, which overlap with the shuffles of a
// tree.
template <class T>
void sum_tails(const RowShape<T>& shape, const GroupRows<T>& rows) {
  const GroupRows<T> g = rows;
  for_sums<false>(g.exps, g.padded, shape, [&](size_t q, const LaneSums& s) XENTROPY_INLINE_LAMBDA {
    store_quotients(q, s.value, s.lost, g);
  });
}

template <class T>
XENTROPY_INLINE LaneQuotients load_quotients(size_t q, const GroupRows<T>& g) {
  return {load(g.tail_sum + q), sizeof(T) == 8 ? load(g.tail_lost + q) : VD{},
          load_wide(g.e_target + q), load(g.odds + q), sizeof(T) == 4 ? load(g.inverse + q) : VD{}};
}

// The losses of one vector of rows, and their factors if there is a gradient. Returns verdicts;
// with kShared negative numbers for rows that do not suit the shared offset. kDiffer: what the rows
// differ in; with kNothing nearly all of settle() is loop-invariant. kShared: one offset for all
// rows.
template <Differ kDiffer, bool kShared, class T>
XENTROPY_INLINE IntVec<double> losses_and_factors_of_lanes(const Terms& t, const Block<T>& b,
                                                           size_t first, size_t q,
                                                           const GroupRows<T>& g) {
  constexpr IntVec<double> kFine = {};
  const size_t n = g.rows - q, r = first + q;
  const LaneQuotients sums = load_quotients(q, g);
  const VD tail_sum = sums.tail_sum, e_target = sums.e_target, nll = log1p_lanes<T>(sums.odds);
  VD origin = {}, differences = {}, class_weight = splat(1.0), sample_weight = class_weight;
  VD upstream = splat(b.upstream_all);
  if (kDiffer == Differ::kAll) {
    if (t.label_smoothing != 0 || t.z_loss != 0) origin = load(g.target + q) * t.logit_scale;
    if (t.label_smoothing != 0) differences = load(g.differences + q) * t.logit_scale;
    if (b.weight) class_weight = load(g.class_weight + q);
    if (b.sample_weight) sample_weight = load_rows(b.sample_weight + r, n);
    if (b.upstream) upstream = load_rows(b.upstream + r, n) * upstream;
  }
  const SettledOf<VD> s = settle<VD>(t, class_weight, sample_weight, upstream, {nll, nll}, tail_sum,
                                     e_target, origin, differences);
  const bool some_left_out = kDiffer != Differ::kNothing && !g.none_ignored;
  IntVec<double> counts = ~kFine;
  if (some_left_out) counts = rows_not_ignored(b.labels + r, n);
  store(b.loss + r, counts ? s.loss : VD{});
  LaneFactors<T> f = {};
  if (b.gradient) {
    f = finish_lanes<T>(t, s, sums);
    if (some_left_out) zero_gradients(~counts, &f);
    store_factors(f, t.label_smoothing != 0, q, g);
  }
  if (kShared) {
    IntVec<double> beyond = sums_out_of_range<T>(tail_sum, tail_sum + e_target, sums.odds);
    if (b.gradient) beyond |= ~factors_in_range(t, s, f);
    return counts & beyond;
  }
  const IntVec<double> good =
      (sums_in_range<T>(tail_sum, e_target) & (sums.odds <= kMaxOdds<T>)) | ~counts;
  const IntVec<double> verdict = good ? kFine : kFine + kRowFallback;
  if (b.gradient == nullptr) return verdict;
  return verdict | (f.fine ? kFine : kFine + kGradientFallback);
}

// Losses and factors of all rows of a group; returns whether all are settled. kShared as above.
template <bool kShared, class T>
bool losses_and_factors(const Terms& t, const Block<T>& block, size_t first,
                        const GroupRows<T>& rows) {
  const Block<T> b = block;  // copies, which no store can alias
  const GroupRows<T> g = rows;
  IntVec<double> open = {};
  const bool puts = b.gradient && !is_tiny(t.classes);
  const auto put = [&](size_t q, size_t end) XENTROPY_INLINE_LAMBDA {
    if (puts) insert_targets(b.labels + first, t.classes, q, end, g);
  };
  const auto settle_all = [&](const Terms& terms, auto differ) XENTROPY_INLINE_LAMBDA {
    for (size_t q = 0; q < g.rows; q += kLanes<double>) {
      if (q > 0) put(q - kLanes<double>, q);  // overlaps with arithmetic
      const IntVec<double> verdict =
          losses_and_factors_of_lanes<differ.value, kShared>(terms, b, first, q, g);
      if (!kShared) store(reinterpret_cast<double*>(g.verdict + q), (VD)verdict);
      open |= verdict;
    }
  };
  constexpr Differing<Differ::kAll> all_differ = {};
  Terms all = t, plain = t;
  plain.label_smoothing = plain.z_loss = 0;
  if (t.label_smoothing != 0 || t.z_loss != 0) {
    settle_all(all, all_differ);
  } else if (b.weight || b.sample_weight || b.upstream) {
    settle_all(plain, all_differ);
  } else if (!g.none_ignored) {
    settle_all(plain, Differing<Differ::kCounting>());
  } else {
    settle_all(plain, Differing<Differ::kNothing>());
  }
  put((g.rows - 1) / kLanes<double> * kLanes<double>, g.rows);
  return kShared ? !any(open < 0) : !any(open != kSettled);
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
