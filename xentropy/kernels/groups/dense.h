// The group kernel for dense targets: short adjacent rows with a target mass for every class
// (common/dense_row.h has the formulas). Probabilities are adjacent rows as well.
//
// Cost: that of the group kernel, two more sums of rows, and a search for the most probable class
// of each row. As there, simple loops pass over a group in the L1 cache:
//
//   1. peaks: the maximum of every row, and from it the row's k;
//   2. exp of all elements;
//   3. masses q, from the probabilities or the labels; products q_c (peak - x_c);
//   4. take the exp and the mass of the most probable class m out, row by row;
//   5. sums of the rows: of exps, masses and products. No term is negative: nothing cancels;
//   6. losses and factors, in vectors of rows;
//   7. rows out of range one by one, by dense_row;
//   8. store the target entries of m, scale, and write whole cache lines.
#pragma once
#include "common/dense_row.h"
#include "groups/loop.h"
#include "groups/settle.h"

namespace xentropy {
namespace XENTROPY_TIER {

template <class T>
struct DenseScratch : GroupScratch<T> {
  T *probabilities, *products;
  T *base, *labelled;  // per class: its mass if it is not the label, and if it is
  double* weight;      // per class
  double *peak_mass, *tail_mass, *distance, *lost;  // masses: of m, tail; sum of products; unused

  DenseScratch(size_t classes, Arena& arena) : GroupScratch<T>(classes, arena) {
    const size_t rows = group_rows(classes), elements = rows * classes + kGroupPadding;
    T** const arrays[] = {&probabilities, &products, &this->g.masses};
    for (T** array : arrays) *array = take<T>(arena, elements);
    base = take<T>(arena, classes);
    labelled = take<T>(arena, classes);
    weight = take<double>(arena, classes + kLanes<double>);
    double** const sums[] = {&peak_mass, &tail_mass, &distance, &lost};
    for (double** array : sums) *array = take<double>(arena, rows);
  }

  void set_weight(const double* of_class, size_t classes) {
    for (size_t c = 0; c < classes + kLanes<double>; ++c) {
      weight[c] = of_class && c < classes ? of_class[c] : 1;
    }
  }
};

// With labels, the masses of all rows are equal except at the label.
template <class T>
void spread_base(const Terms& t, const Block<T>& b, const DenseScratch<T>& s) {
  const size_t C = t.classes, capacity = group_rows(C);
  make_masses(t, s.weight, static_cast<const T*>(nullptr), C, s.base);
  for (size_t c = 0; c < C; ++c) s.labelled[c] = T(label_mass(t, s.weight[c]));
  for (size_t q = 0; q < capacity && q < b.rows + kRowMultiple; ++q) {
    __builtin_memcpy(s.g.masses + q * C, s.base, C * sizeof(T));
  }
}

template <class T>
void mark_labels(const int64_t* labels, size_t classes, const DenseScratch<T>& s) {
  for (size_t q = 0; q < s.g.rows; ++q) {
    if (labels[q] != kIgnored) s.g.masses[q * classes + size_t(labels[q])] = s.labelled[labels[q]];
  }
}

// Restores the base masses at the labels and at the most probable classes.
template <class T>
void unmark_labels(const int64_t* labels, size_t classes, const DenseScratch<T>& s) {
  T* masses = s.g.masses;
  for (size_t q = 0; q < s.g.rows; ++q) {
    const size_t begin = q * classes, place = s.g.place[q];
    masses[place] = s.base[place - begin];
    if (labels[q] != kIgnored) masses[begin + size_t(labels[q])] = s.base[labels[q]];
  }
}

// make_masses row by row, in vectors, each of which may extend into the following row.
template <class T>
void make_masses_of_rows(const Terms& t, const T* p, const DenseScratch<T>& s) {
  const size_t C = t.classes, rows = s.g.padded;
  const double *weight = s.weight, uniform = t.label_smoothing / double(C);
  const double hard = 1 - t.label_smoothing;
  T* masses = s.g.masses;
  for (size_t q = 0; q < rows; ++q, p += C, masses += C) {
    for (size_t c = 0; c < C; c += kLanes<double>) {
      store_narrow(masses + c, load(weight + c) * (hard * load_wide(p + c) + uniform));
    }
  }
}

// The products kLogitSumScale * q_c (peak - x_c), with 0 * inf = 0. kCopy: `masses` are
// probabilities in memory, which are copied to g.masses; `next` are those of the next group.
template <bool kCopy, class T>
void multiply_rows(const T* x, const T* masses, const T* next, size_t classes,
                   const DenseScratch<T>& s) {
  constexpr size_t L = kLanes<T>;
  const GroupRows<T> g = s.g;
  const T* index = s.index;
  T* products = s.products;
  const Vec<T> small = splat(T(kLogitSumScale)), zero = {};
  for (size_t q = 0; q < g.padded; q += L) {
    const Vec<T> tops = load(s.g.peak + q) * small;
    const size_t begin = q * classes;
    for (size_t i = 0; i < L * classes; i += L) {
      if (kCopy && i % kLine<T> == 0) {
        prefetch_l2(next + begin + i + (4 << 10) / sizeof(T));
        prefetch_l1(next + begin + i);
      }
      const Vec<T> m = load(masses + begin + i), top = permute(tops, (IntVec<T>)load(index + i));
      if (kCopy) store(g.masses + begin + i, m);
      const Vec<T> v = m * fma(load(x + begin + i), -small, top);
      store(products + begin + i, m == zero ? zero : v);
    }
  }
}

// Step 3, from the probabilities p or, if p is null, from the labels.
template <class T>
void mass_group(const Terms& t, const Block<T>& b, size_t first, const T* x, const T* p,
                const DenseScratch<T>& s) {
  const T* masses = s.g.masses;
  if (!p) {
    mark_labels(b.labels + first, t.classes, s);
  } else if (!b.weight && t.label_smoothing == 0) {
    const T* next = b.probabilities + (first + s.g.rows) * t.classes;
    return multiply_rows<true>(x, p, next, t.classes, s);
  } else {
    make_masses_of_rows(t, p, s);
  }
  multiply_rows<false>(x, masses, masses, t.classes, s);
}

// Step 4.
template <class T>
void extract_peaks(const T* x, const RowShape<T>& row, const DenseScratch<T>& scratch) {
  const GroupRows<T> g = scratch.g;
  double* peak_mass = scratch.peak_mass;
  with_constant(row.vectors, [=](auto vectors) {
    RowShape<T> shape = row;
    if (vectors.value >= 0) shape.vectors = size_t(vectors.value);
    for (size_t q = 0; q < g.rows; ++q) {
      const size_t place = peak_index(x, q, shape, g.peak[q]);
      g.place[q] = uint32_t(place);
      extract_exp(q, place, g);
      peak_mass[q] = double(g.masses[place]);
      g.masses[place] = 0;
    }
  });
}

// Step 6 for one vector of rows.
template <class T>
XENTROPY_INLINE IntVec<double> dense_losses_and_factors_of_lanes(const Terms& t, const Block<T>& b,
                                                                 size_t first, size_t q,
                                                                 const DenseScratch<T>& s) {
  constexpr IntVec<double> kFine = {};
  const GroupRows<T>& g = s.g;
  const size_t n = g.rows - q, r = first + q;
  const VD tail_sum = load(g.tail_sum + q), e_m = load_wide(g.e_target + q);
  const VD lost = sizeof(T) == 8 ? load(g.tail_lost + q) : VD{};
  const LaneQuotients sums = quotients(tail_sum, lost, e_m);
  const VD nll = log1p_lanes<T>(sums.odds), origin = load_wide(s.g.peak + q) * t.logit_scale;
  const VD sample_weight = b.sample_weight ? load_rows(b.sample_weight + r, n) : splat(1.0);
  VD upstream = splat(b.upstream_all);
  if (b.upstream) upstream = load_rows(b.upstream + r, n) * upstream;
  const VD peak_mass = load(s.peak_mass + q), tail_mass = load(s.tail_mass + q),
           mass = peak_mass + tail_mass;
  const SettledOf<VD> settled =
      settle_dense<VD>(t, peak_mass, tail_mass, load(s.distance + q) * (1 / kLogitSumScale),
                       sample_weight, upstream, {nll, nll}, tail_sum, e_m, origin);
  store_losses(b.loss + r, settled.loss, n);
  // With an infinite mass the products are nan here, but 0 in rows/dense.h.
  const IntVec<double> good =
      sums_in_range<T>(tail_sum, e_m) & (sums.odds <= kMaxOdds<T>)&(mass - mass == 0);
  const IntVec<double> verdict = good ? kFine : kFine + kRowFallback;
  if (b.gradient == nullptr) return verdict;
  const LaneFactors<T> factor = factor_lanes<T>(t, settled.g * settled.mass, sums);
  const LaneFactors<T> f = finish_target<T>(t, settled, true, false, factor);
  store_factors(f, true, q, g);
  return verdict | (f.fine ? kFine : kFine + kGradientFallback);
}

// Step 6; returns whether all rows are settled.
template <class T>
bool dense_losses_and_factors(const Terms& t, const Block<T>& b, size_t first,
                              const DenseScratch<T>& s) {
  IntVec<double> open = {};
  for (size_t q = 0; q < s.g.rows; q += kLanes<double>) {
    const IntVec<double> verdict = dense_losses_and_factors_of_lanes(t, b, first, q, s);
    store(reinterpret_cast<double*>(s.g.verdict + q), (VD)verdict);
    open |= verdict;
  }
  return !any(open != kSettled);
}

// Step 7 for row q, and for ignored rows.
template <class T>
void fallback_dense_row(const Terms& t, const Block<T>& b, size_t first, size_t q, const T* x,
                        const DenseScratch<T>& s) {
  const GroupRows<T>& g = s.g;
  const size_t C = t.classes, r = first + q, begin = q * C, place = g.place[q];
  g.factor[q] = g.rest[q] = g.bias[q] = g.target_entry[q] = 0;
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
  g.masses[place] = T(s.peak_mass[q]);
  dense_row<T>(t, one, 0, g.masses + begin, e, s.chunks);
  if (g.verdict[q] == kRowFallback) b.loss[r] = loss;
  if (!e) return;
  __builtin_memcpy(g.exps + begin, e, C * sizeof(T));
  g.target_entry[q] = g.exps[place];
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
  extract_peaks(at.x, shape, s);
  sum_rows<false>(g.exps, g.padded, shape, g.tail_sum, g.tail_lost);
  sum_rows<false>(g.masses, g.padded, shape, s.tail_mass, s.lost);
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
        for (size_t q = 0; q < g.rows; ++q) g.exps[g.place[q]] = g.target_entry[q];
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
