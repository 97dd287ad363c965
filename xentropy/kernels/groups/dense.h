// The group kernel for dense targets: short adjacent rows with a target mass for every class
// (common/dense_row.h has the formulas). Probabilities are adjacent rows as well.
//
// Cost: that of the group kernel, two more sums of rows (one for labels), and for each row 16
// instructions and five scattered stores for its most probable class. As there, simple loops pass
// over a group in the L1 cache:
//
//   1. peaks: the maximum of every row, and from it the row's k;
//   2. exp of all elements;
//   3. masses q, from the probabilities or the labels; products q_c (peak - x_c); as bits, which
//      logits are equal to their row's peak;
//   4. take the exp and the mass of the most probable class m out, row by row;
//   5. sums of the rows: of exps, masses and products. No term is negative: nothing cancels;
//   6. losses and factors, in vectors of rows; store the target entries of m;
//   7. rows out of range one by one, by dense_row;
//   8. scale, and write whole cache lines.
#pragma once
#include "groups/dense_masses.h"
#include "groups/settle.h"

namespace xentropy {
namespace XENTROPY_TIER {

// Step 4.
template <class T>
void extract_peaks(size_t classes, const DenseScratch<T>& s) {
  const GroupRows<T> g = s.g;
  const unsigned char* at_peak = s.at_peak;
  T* peak_mass = s.peak_mass;
  size_t begin = 0;
  for (size_t q = 0; q < g.rows; ++q, begin += classes) {
    const size_t place = begin + first_equal<T>(at_peak, begin, classes);
    g.place[q] = uint32_t(place);
    extract_exp(q, place, g);
    peak_mass[q] = g.masses[place];
    g.masses[place] = 0;
  }
}

// Step 6 for one vector of rows. kPlain: no option makes a difference (of float64, where divisions
// take most of the time, there is no such instance).
template <bool kPlain, class T>
XENTROPY_INLINE IntVec<double> dense_losses_and_factors_of_lanes(const Terms& t, const Block<T>& b,
                                                                 size_t first, size_t q,
                                                                 const DenseScratch<T>& s) {
  constexpr IntVec<double> kFine = {};
  const GroupRows<T>& g = s.g;
  const size_t n = g.rows - q, r = first + q;
  const LaneQuotients sums = load_quotients(q, g);
  const VD nll = log1p_lanes<T>(sums.odds);
  VD origin = {}, sample_weight = splat(1.0), upstream = splat(b.upstream_all);
  if (!kPlain) {
    origin = load_wide(g.peak + q) * t.logit_scale;
    if (b.sample_weight) sample_weight = load_rows(b.sample_weight + r, n);
    if (b.upstream) upstream = load_rows(b.upstream + r, n) * upstream;
  }
  const VD peak_mass = load_wide(s.peak_mass + q), tail_mass = load(s.tail_mass + q),
           distance = load(s.distance + q), mass = peak_mass + tail_mass;
  const SettledOf<VD> settled =
      settle_dense<VD>(t, peak_mass, tail_mass, distance, sample_weight, upstream, {nll, nll},
                       sums.tail_sum, sums.e_target, origin);
  store_losses(b.loss + r, settled.loss, n);
  // With an infinite mass the products are nan here, but 0 in rows/dense.h; logits of 3e38
  // overflow.
  const IntVec<double> finite = (mass - mass == 0) & (distance - distance == 0);
  const IntVec<double> good =
      sums_in_range<T>(sums.tail_sum, sums.e_target) & (sums.odds <= kMaxOdds<T>)&finite;
  const IntVec<double> verdict = good ? kFine : kFine + kRowFallback;
  if (b.gradient == nullptr) return verdict;
  LaneFactors<T> f = factor_lanes<T>(t, settled.g * settled.mass, sums);
  f.target_entry = settled.numerator / settled.mass;
  f = finish_target<T>(t, settled, true, false, f);
  store_factors(f, true, q, g);
  return verdict | (f.fine ? kFine : kFine + kGradientFallback);
}

// Step 6, and the target entries of step 8, which overlap with arithmetic; returns whether all rows
// are settled.
template <class T>
bool dense_losses_and_factors(const Terms& t, const Block<T>& block, size_t first,
                              const DenseScratch<T>& scratch) {
  const Block<T> b = block;  // copies, which no store can alias
  const DenseScratch<T> s = scratch;
  const GroupRows<T>& g = s.g;
  const size_t puts_to = b.gradient ? g.rows : 0;
  IntVec<double> open = {};
  const auto settle_all = [&](const Terms& terms, auto plain) XENTROPY_INLINE_LAMBDA {
    for (size_t q = 0, put = 0; q < g.rows; q += kLanes<double>) {
      const IntVec<double> verdict =
          dense_losses_and_factors_of_lanes<plain.value>(terms, b, first, q, s);
      store(reinterpret_cast<double*>(g.verdict + q), (VD)verdict);
      open |= verdict;
      for (; put < q && put < puts_to; ++put) g.exps[g.place[put]] = g.target_entry[put];
    }
  };
  const bool differ = t.z_loss != 0 || t.unit != 1 || b.sample_weight || b.upstream;
  if (sizeof(T) == 8 || differ || t.logit_scale != 1) {
    settle_all(Terms(t), Constant<false>());
  } else {
    Terms plain = t;
    plain.z_loss = 0;
    plain.unit = plain.logit_scale = 1;
    settle_all(plain, Constant<true>());
  }
  const size_t last = (g.rows - 1) / kLanes<double> * kLanes<double>;
  for (size_t q = last; q < puts_to; ++q) g.exps[g.place[q]] = g.target_entry[q];
  return !any(open != kSettled);
}

// Step 7 for row q, and for ignored rows.
template <class T>
void fallback_dense_row(const Terms& t, const Block<T>& b, size_t first, size_t q, const T* x,
                        const DenseScratch<T>& s) {
  const GroupRows<T>& g = s.g;
  const size_t C = t.classes, r = first + q, begin = q * C, place = g.place[q];
  g.factor[q] = g.rest[q] = g.bias[q] = g.exps[place] = 0;
  if (b.labels[r] == kIgnored) {
    b.loss[r] = 0;
    return;
  }
  T* e = b.gradient ? s.row : nullptr;
  double loss;
  Block<T> one = b;
  one.logits = x + begin;
  one.gradient = e;
  one.loss = &loss;
  one.sample_weight = b.sample_weight ? b.sample_weight + r : nullptr;
  one.upstream = b.upstream ? b.upstream + r : nullptr;
  g.masses[place] = s.peak_mass[q];
  dense_row<T>(t, one, 0, g.masses + begin, e, s.chunks);
  if (g.verdict[q] == kRowFallback) b.loss[r] = loss;
  if (!e) return;
  __builtin_memcpy(g.exps + begin, e, C * sizeof(T));
  g.factor[q] = 1;
  g.rest[q] = T(kNegligibleRest<T>);
}

// Steps 1 to 7; p as in mass_group.
template <class T>
void compute_dense_group(const Terms& t, const Block<T>& b, const Group<T>& at, const T* p,
                         const RowShape<T>& shape, const DenseScratch<T>& s) {
  const GroupRows<T>& g = s.g;
  peak_rows(at.x, g.padded, shape, t.logit_scale, g.anchor, s.g.peak);
  with_scaled(t.logit_scale, [&](auto scaled) {
    exp_rows<T, scaled.value>(at.x, t.classes, t.logit_scale, s.index, at.next, g);
  });
  mass_group(t, b, at.first, at.x, p, s);
  extract_peaks(t.classes, s);
  sum_tails(shape, g);
  if (p) {
    sum_rows<false>(g.masses, g.padded, shape, s.tail_mass, s.lost);
  } else {
    look_up_tail_masses(b.labels + at.first, t.classes, s);
  }
  sum_rows<false>(s.products, g.padded, shape, s.distance, s.lost);
  const bool all_settled = dense_losses_and_factors(t, b, at.first, s);
  for (size_t q = 0; !(g.none_ignored && all_settled) && q < g.rows; ++q) {
    if (g.verdict[q] != kSettled || b.labels[at.first + q] == kIgnored) {
      fallback_dense_row(t, b, at.first, q, at.x, s);
    }
  }
}

template <class T>
size_t dense_groups_bytes(size_t classes, bool) {
  return bytes_of<DenseScratch<T>>(classes);
}

template <class T>
void dense_groups(const Terms& t, const Block<T>& b, char* workspace, bool streamed) {
  const size_t C = t.classes;
  Arena arena = {workspace, 0};
  DenseScratch<T> s(C, arena);
  GroupRows<T>& g = s.g;
  const RowShape<T> shape(C);
  index_rows(C, s.index);
  s.set_weight(b.weight, C);
  if (!b.probabilities) spread_base(t, b, s);
  with_writer(b.gradient, streamed, [&](auto& writer) {
    for_groups(b.logits, b.labels, b.rows, C, s, [&](const Group<T>& at) {
      const T* p = b.probabilities ? b.probabilities + at.first * C : nullptr;
      if (p && at.copied) p = padded_copy(p, b.labels + at.first, C, g, s.probabilities);
      compute_dense_group(t, b, at, p, shape, s);
      if (b.gradient) {
        writer.write(g.rows * C, at.last, g.exps, [&](const auto& to) XENTROPY_INLINE_LAMBDA {
          scale_rows<Bias::kByMass>(g, C, s.index, to);
        });
      }
      if (!p) unmark_labels(b.labels + at.first, C, s);
    });
  });
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
