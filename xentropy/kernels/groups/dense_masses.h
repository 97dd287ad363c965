// The masses of short rows with dense targets, and their products with logits: steps 3 and 5 of
// groups/dense.h.
//
// Cost: two stores of a vector decide, for probabilities (labels: one), the arithmetic is hidden.
// The masses of a row with a label are the same as those of any other but at the label, so that
// their sum is looked up; to mark the label and to unmark it takes three scalar stores.
#pragma once
#include "common/dense_row.h"
#include "groups/loop.h"
#include "groups/targets.h"

namespace xentropy {
namespace XENTROPY_TIER {

template <class T>
struct DenseScratch : GroupScratch<T> {
  T *probabilities, *products;
  unsigned char* at_peak;  // which elements are equal to the maximum of their row
  T* peak_mass;            // the mass of m
  T *base, *labelled;      // per class: its mass if it is not the label, and if it is
  double* weight;          // per class
  // With labels, per class: the sum of all base masses but its own, and what a label adds to it.
  double *without, *added;
  double *tail_mass, *distance, *lost;  // sums of masses without m, and of products; unused

  DenseScratch(size_t classes, Arena& arena) : GroupScratch<T>(classes, arena) {
    const size_t rows = group_rows(classes), elements = rows * classes + kGroupPadding;
    T** const arrays[] = {&probabilities, &products, &this->g.masses};
    for (T** array : arrays) *array = take<T>(arena, elements);
    at_peak = take<unsigned char>(arena, (elements * kEqualBits<T>) / 8 + 16);
    peak_mass = take<T>(arena, rows);
    base = take<T>(arena, classes);
    labelled = take<T>(arena, classes);
    weight = take<double>(arena, classes + kLanes<double>);
    without = take<double>(arena, classes);
    added = take<double>(arena, classes);
    double** const sums[] = {&tail_mass, &distance, &lost};
    for (double** array : sums) *array = take<double>(arena, rows);
  }

  void set_weight(const double* of_class, size_t classes) {
    for (size_t c = 0; c < classes + kLanes<double>; ++c) {
      weight[c] = of_class && c < classes ? of_class[c] : 1;
    }
  }
};

// For every class what its label adds, and the sum of all other base masses: from both ends, as a
// difference would cancel.
template <class T>
void sum_base(size_t classes, const DenseScratch<T>& s) {
  Sum before = {}, after = {};
  for (size_t c = 0; c < classes; ++c) {
    s.without[c] = before.value + before.lost;
    before = exact_sum(before, double(s.base[c]));
  }
  for (size_t c = classes; c-- > 0;) {
    s.added[c] = double(s.labelled[c]) - double(s.base[c]);
    s.without[c] += after.value + after.lost;
    after = exact_sum(after, double(s.base[c]));
  }
}

// With labels, the masses of all rows are equal except at the label.
template <class T>
void spread_base(const Terms& t, const Block<T>& b, const DenseScratch<T>& s) {
  const size_t C = t.classes, capacity = group_rows(C);
  make_masses(t, s.weight, static_cast<const T*>(nullptr), C, s.base);
  for (size_t c = 0; c < C; ++c) s.labelled[c] = T(label_mass(t, s.weight[c]));
  sum_base(C, s);
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

// The products q_c (peak - x_c), with 0 * inf = 0. kCopy: `masses` are probabilities in memory,
// which are copied to g.masses; `next` are those of the next group.
template <bool kCopy, class T>
void multiply_rows(const T* x, const T* masses, const T* next, size_t classes,
                   const DenseScratch<T>& s) {
  constexpr size_t L = kLanes<T>;
  const GroupRows<T> g = s.g;
  const T* index = s.index;
  T* products = s.products;
  unsigned char* at_peak = s.at_peak;
  const Vec<T> zero = {};
  for (size_t q = 0; q < g.padded; q += L) {
    const Vec<T> peaks = load(g.peak + q);
    const size_t begin = q * classes;
    for (size_t i = 0; i < L * classes; i += L) {
      if (kCopy && i % kLine<T> == 0) {
        prefetch_l2(next + begin + i + (4 << 10) / sizeof(T));
        prefetch_l1(next + begin + i);
      }
      const Vec<T> m = load(masses + begin + i), logit = load(x + begin + i);
      const Vec<T> peak = permute(peaks, (IntVec<T>)load(index + i));
      store_equal(at_peak + (begin + i) * kEqualBits<T> / 8, logit, peak);
      if (kCopy) store(g.masses + begin + i, m);
      const Vec<T> v = m * (peak - logit);
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

// Step 5 for the masses of labels, which are the same in all rows but for the label.
template <class T>
void look_up_tail_masses(const int64_t* labels, size_t classes, const DenseScratch<T>& scratch) {
  const DenseScratch<T> s = scratch;
  for (size_t q = 0, begin = 0; q < s.g.rows; ++q, begin += classes) {
    const size_t m = s.g.place[q] - begin, y = class_of(labels[q]);
    s.tail_mass[q] = s.without[m] + (m == y ? 0 : s.added[y]);
  }
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
