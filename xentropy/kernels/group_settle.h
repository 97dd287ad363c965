// From the sums of a group's rows to losses and factors: settle.h and finish_row in vectors,
// kLanes<double> rows at a time.
//
// Cost: one division of float64 lanes for float32, five for float64.
#pragma once
#include "group_sums.h"
#include "log1p.h"
#include "settle.h"

namespace xentropy {
namespace XENTROPY_TIER {

// What a row of a group still needs: nothing, its gradient (whose factors are no normal
// numbers), or loss and gradient, from its maximum.
constexpr int64_t kSettled = 0, kGradientByHand = 1, kRowByHand = 3;

// The rows of a group, each array in scratch. A number of rows that is no multiple of kPack
// is filled up with rows of zeros.
constexpr size_t kPack = 16;

template <class T>
struct GroupRows {
  size_t rows, padded;
  bool all_count;    // so do the rows after, as far as they are read
  T* exps;           // row after row, 0 at the target
  T* anchor;         // kShift - k
  T* peak;           // the largest logit, where it is asked for
  T* e_target;       // exp of the target
  T* at_target;      // what is put in its place, in the units of the exps
  T *factor, *rest;  // gradient = exps * (factor + rest) - bias; rest of float64 alone
  T* bias;           // of dense targets: times their masses
  T* masses;         // row after row, 0 at the most probable class, which is the target here
  uint32_t* place;   // of the target in a group of rows
  T* label;          // of few classes: the target, negative if the row does not count
  double *others, *others_lost;
  double* target;       // its logit, and
  double* differences;  // the sum over c of x_c, its rounding error in differences_lost
  double* differences_lost;
  double* class_weight;
  int64_t* verdict;
};

// kLanes<double> of p[0..n), or 0 beyond.
XENTROPY_INLINE VD load_rows(const double* p, size_t n) {
  return n >= kLanes<double> ? load(p) : load_first(p, n, VD{});
}

// Odds against the target and e_target / total.
struct LaneOdds {
  VD odds, reciprocal_total;
};
template <class T>
XENTROPY_INLINE LaneOdds odds_of(VD others, VD e_target, VD total) {
  if (sizeof(T) == 8) return {others / e_target, VD{}};
  const VD r = 1.0 / (e_target * total);  // float32: two roundings of float64 do not show
  return {others * (total * r), e_target * r};
}

template <class T>
constexpr double kLeastFactor = sizeof(T) == 4 ? 0x1p-120 : 0x1p-1000;

template <class T>
struct LaneFinish {
  VD factor, rest, bias, at_target;
  IntVec<double> fine;
};

// Factor and rest of finish_row, and whether they are fine.
template <class T>
XENTROPY_INLINE LaneFinish<T> factor_lanes(const Terms& t, VD on_p, VD others, VD others_lost,
                                           VD e_target, VD reciprocal_total) {
  const LaneSums total = exact_sums(others, e_target);
  LaneFinish<T> f = {};
  if (sizeof(T) == 4) {
    f.factor = on_p * (1 / t.divisor) * reciprocal_total;
  } else {
    const VD divisor = splat(t.divisor), below = total.value * divisor;
    const VD below_lost =
        product_error<double>(total.value, divisor, below) + (total.lost + others_lost) * divisor;
    f.factor = on_p / below;
    const VD product = f.factor * below;
    f.rest = ((on_p - product) - product_error<double>(f.factor, below, product) -
              f.factor * below_lost) /
             below;
  }
  const VD size = magnitude(f.factor);
  f.fine = (size >= kLeastFactor<T>)&(size <= Exp<T>::kMostFactor);
  return f;
}

// Gradients of 0.
template <class T>
XENTROPY_INLINE void leave_out(IntVec<double> rows, LaneFinish<T>* f) {
  const VD zero = {};
  f->factor = rows ? zero : f->factor;
  f->rest = rows ? zero : f->rest;
  f->bias = rows ? zero : f->bias;
  f->at_target = rows ? zero : f->at_target;
  f->fine |= rows;
}

// The rest of finish_row, where the target has a bias or not. Rows without weight or upstream
// gradient are fine too: all of theirs is 0.
template <class T>
XENTROPY_INLINE LaneFinish<T> finish_target(const Terms& t, const SettledOf<VD>& r, bool biased,
                                            bool target_biased, LaneFinish<T> f) {
  constexpr double kLeast = kLeastFactor<T>;
  f.factor = rounded<T>(f.factor);
  f.at_target = r.numerator / r.mass;
  if (biased) {
    const VD bias = r.g * r.bias;  // float32: a second rounding of float64 does not show
    f.bias = sizeof(T) == 4 ? bias * (1 / t.divisor) : bias / t.divisor;
    if (target_biased) f.at_target += f.bias / f.factor;
    const VD of_bias = magnitude(f.bias);
    f.fine &= (of_bias >= kLeast) & (of_bias <= 1 / kLeast);
  }
  f.fine &= magnitude(f.at_target) <= 1 / kLeast;
  if (any(~f.fine)) {
    leave_out((r.g * r.mass == 0) & (r.g * r.numerator == 0) & (r.g * r.bias == 0), &f);
  }
  return f;
}

// As finish_row for class indices, whose bias is the same for every class.
template <class T>
XENTROPY_INLINE LaneFinish<T> finish_lanes(const Terms& t, const SettledOf<VD>& r, VD others,
                                           VD others_lost, VD e_target, VD reciprocal_total) {
  const VD on_p = r.g * r.mass;
  LaneFinish<T> f = factor_lanes<T>(t, on_p, others, others_lost, e_target, reciprocal_total);
  const bool biased = t.label_smoothing != 0;
  if (biased || t.z_loss != 0) return finish_target<T>(t, r, biased, true, f);
  f.at_target = VD{} - others;  // +0 where there are no others, as in settle.h
  f.fine |= on_p == 0;
  return f;
}

template <class T>
XENTROPY_INLINE void store_finish(const LaneFinish<T>& f, bool biased, size_t q,
                                  const GroupRows<T>& g) {
  store_narrow(g.factor + q, f.factor);
  store_narrow(g.at_target + q, f.at_target);
  if (sizeof(T) == 8) store_narrow(g.rest + q, f.rest);
  if (biased) store_narrow(g.bias + q, f.bias);
}

// kLanes<double> losses, or the first n.
XENTROPY_INLINE void store_losses(double* to, VD loss, size_t n) {
  if (n >= kLanes<double>) {
    store(to, loss);
  } else {
    store_first(to, loss, n);
  }
}

// Which of these rows count? n: how many have labels.
XENTROPY_INLINE IntVec<double> rows_that_count(const int64_t* labels, size_t n) {
  return (IntVec<double>)load_rows(reinterpret_cast<const double*>(labels), n) >= 0;
}

// Were the exps of these rows neither too large nor too small? The total is not below kMinTotal:
// the largest exp is not. It may be nan.
template <class T>
XENTROPY_INLINE IntVec<double> in_range(VD others, VD total, VD odds) {
  constexpr double kMostOdds = sizeof(T) == 4 ? 0x1p140 : 0x1p1000;
  return (total < Exp<T>::kMaxTotal) & (odds <= kMostOdds) & ~has_tiny<T>(others);
}

// What rows may differ in, beside their logits and targets.
enum class Differ { kNothing, kCounting, kAll };

// A vector of rows: losses, and unless there is no gradient their factors. Returns verdicts.
// Where rows do not differ almost all of settle is the same for every one.
template <Differ kDiffer, class T>
XENTROPY_INLINE IntVec<double> settle_lanes(const Terms& t, const Block<T>& b, size_t first,
                                            size_t q, const GroupRows<T>& g) {
  constexpr IntVec<double> kFine = {};
  const size_t n = g.rows - q, r = first + q;
  const VD others = load(g.others + q), e_target = load_wide(g.e_target + q);
  const VD total = others + e_target;
  const LaneOdds odds = odds_of<T>(others, e_target, total);
  const VD nll = log1p_lanes<T>(odds.odds);
  VD origin = {}, differences = {}, class_weight = splat(1.0), repeat = class_weight;
  VD upstream = splat(b.upstream_all);
  if (kDiffer == Differ::kAll) {
    if (t.label_smoothing != 0 || t.z_loss != 0) origin = load(g.target + q) * t.logit_scale;
    if (t.label_smoothing != 0) differences = load(g.differences + q) * t.logit_scale;
    if (b.weight) class_weight = load(g.class_weight + q);
    if (b.repeat) repeat = load_rows(b.repeat + r, n);
    if (b.upstream) upstream = load_rows(b.upstream + r, n) * upstream;
  }
  const SettledOf<VD> s = settle<VD>(t, class_weight, repeat, upstream, {nll, nll}, others,
                                     e_target, origin, differences);
  const bool some_left_out = kDiffer != Differ::kNothing && !g.all_count;
  IntVec<double> counts = ~kFine;
  if (some_left_out) counts = rows_that_count(b.labels + r, n);
  store_losses(b.loss + r, counts ? s.loss : VD{}, n);
  const IntVec<double> good = in_range<T>(others, total, odds.odds) | ~counts;
  const IntVec<double> verdict = good ? kFine : kFine + kRowByHand;
  if (b.gradient == nullptr) return verdict;
  const VD lost = sizeof(T) == 8 ? load(g.others_lost + q) : VD{};
  LaneFinish<T> f = finish_lanes<T>(t, s, others, lost, e_target, odds.reciprocal_total);
  if (some_left_out) leave_out(~counts, &f);
  store_finish(f, t.label_smoothing != 0, q, g);
  return verdict | (f.fine ? kFine : kFine + kGradientByHand);
}

// All rows of a group; returns whether every one of them is settled.
template <class T>
bool settle_rows(const Terms& t, const Block<T>& block, size_t first, const GroupRows<T>& rows) {
  const Block<T> b = block;  // copies: no store can change them
  const GroupRows<T> g = rows;
  IntVec<double> open = {};
  const auto settle_all = [&](const Terms& terms, auto differ) XENTROPY_INLINE_LAMBDA {
    for (size_t q = 0; q < g.rows; q += kLanes<double>) {
      const IntVec<double> verdict = settle_lanes<Differ(differ.value)>(terms, b, first, q, g);
      store(reinterpret_cast<double*>(g.verdict + q), (VD)verdict);
      open |= verdict;
    }
  };
  constexpr Constant<int(Differ::kAll)> all_differ = {};
  Terms all = t, plain = t;
  plain.label_smoothing = plain.z_loss = 0;
  if (t.label_smoothing != 0 || t.z_loss != 0) {
    settle_all(all, all_differ);
  } else if (b.weight || b.repeat || b.upstream) {
    settle_all(plain, all_differ);
  } else if (!g.all_count) {
    settle_all(plain, Constant<int(Differ::kCounting)>());
  } else {
    settle_all(plain, Constant<int(Differ::kNothing)>());
  }
  return !any(open != kSettled);
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
