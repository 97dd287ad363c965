// From the sums of a group's rows to losses and factors, by settle_lanes.h.
#pragma once
#include "group_shared.h"
#include "group_sums.h"
#include "settle_lanes.h"

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
  return (total < Exp<T>::kMaxTotal) & (odds <= kMostOdds<T>)&~has_tiny<T>(others);
}

// A vector of rows: losses, and unless there is no gradient their factors. Returns verdicts; with a
// shared k negative numbers where it does not suit a row.
// Where rows do not differ almost all of settle is the same for every one.
template <Differ kDiffer, bool kShared, class T>
XENTROPY_INLINE IntVec<double> settle_lanes(const Terms& t, const Block<T>& b, size_t first,
                                            size_t q, const GroupRows<T>& g) {
  constexpr IntVec<double> kFine = {};
  const size_t n = g.rows - q, r = first + q;
  const VD others = load(g.others + q), e_target = load_wide(g.e_target + q);
  const VD total = others + e_target, odds = others / e_target;
  const VD nll = log1p_lanes<T>(odds);
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
  store(b.loss + r, counts ? s.loss : VD{});
  LaneFinish<T> f = {};
  if (b.gradient) {
    const VD lost = sizeof(T) == 8 ? load(g.others_lost + q) : VD{};
    f = finish_lanes<T>(t, s, others, lost, e_target);
    if (some_left_out) leave_out(~counts, &f);
    store_finish(f, t.label_smoothing != 0, q, g);
  }
  if (kShared) {
    IntVec<double> beyond = beyond_shared<T>(others, total, odds);
    if (b.gradient) beyond |= ~suits_both(t, s, f);
    return counts & beyond;
  }
  const IntVec<double> good = in_range<T>(others, total, odds) | ~counts;
  const IntVec<double> verdict = good ? kFine : kFine + kRowByHand;
  if (b.gradient == nullptr) return verdict;
  return verdict | (f.fine ? kFine : kFine + kGradientByHand);
}

// All rows of a group; returns whether every one of them is settled.
template <bool kShared, class T>
bool settle_rows(const Terms& t, const Block<T>& block, size_t first, const GroupRows<T>& rows) {
  const Block<T> b = block;  // copies: no store can change them
  const GroupRows<T> g = rows;
  IntVec<double> open = {};
  const auto settle_all = [&](const Terms& terms, auto differ) XENTROPY_INLINE_LAMBDA {
    for (size_t q = 0; q < g.rows; q += kLanes<double>) {
      const IntVec<double> verdict = settle_lanes<differ.value, kShared>(terms, b, first, q, g);
      if (!kShared) store(reinterpret_cast<double*>(g.verdict + q), (VD)verdict);
      open |= verdict;
    }
  };
  constexpr Differing<Differ::kAll> all_differ = {};
  Terms all = t, plain = t;
  plain.label_smoothing = plain.z_loss = 0;
  if (t.label_smoothing != 0 || t.z_loss != 0) {
    settle_all(all, all_differ);
  } else if (b.weight || b.repeat || b.upstream) {
    settle_all(plain, all_differ);
  } else if (!g.all_count) {
    settle_all(plain, Differing<Differ::kCounting>());
  } else {
    settle_all(plain, Differing<Differ::kNothing>());
  }
  return kShared ? !any(open < 0) : !any(open != kSettled);
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
