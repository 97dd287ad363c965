// The target masses of a row: probabilities in memory, masses that are computed from them, or with
// labels one row of masses for all rows, in which the mass of the label is exchanged.
#pragma once
#include "common/dense_row.h"

namespace xentropy {
namespace XENTROPY_TIER {

// The mass of a label, which swap() exchanges with the one in the masses that all rows share.
template <class T>
struct LabelMass {
  T* at = nullptr;
  T other = 0;

  void swap() {
    if (!at) return;
    const T mass = *at;
    *at = other;
    other = mass;
  }
};

// The target of one row: probabilities, or a label.
template <class T>
struct DenseTarget {
  const Terms* t;
  const double* weight;
  const T* p;  // null: a label
  T* made;     // DenseWorkspace::masses
  bool as_it_is;
  size_t label;

  DenseTarget(const Terms& terms, const Block<T>& b, size_t r, T* masses)
      : t(&terms),
        weight(b.weight),
        p(b.probabilities ? b.probabilities + ptrdiff_t(r) * b.probabilities_stride : nullptr),
        made(masses),
        as_it_is(p && !weight && terms.label_smoothing == 0),
        label(size_t(b.labels[r])) {}

  // The masses of the row: where they lie in memory, or will once chunk_of has made all of them.
  const T* row() const { return as_it_is ? p : made; }

  // Prefetches probabilities, 4 KB ahead of n classes from `begin` on. Beside the exps of a row;
  // its sums would wait for memory.
  XENTROPY_INLINE_MEMBER void prefetch(size_t begin, size_t n) const {
    for (size_t i = begin; p && i < begin + n; i += kLine<T>) {
      prefetch_l2(p + i + (4 << 10) / sizeof(T));
    }
  }

  // Computes the masses of the row, if they are not in memory.
  void make_row() const {
    if (p && !as_it_is) make_masses(*t, weight, p, t->classes, made);
  }

  LabelMass<T> label_mass_in_row() const {
    if (p) return {};
    return {made + label, T(label_mass(*t, weight[label]))};
  }

  // The masses of n classes from `begin` on. That of the label is only in the copy.
  const T* chunk_of(size_t begin, size_t n, T* copy) const {
    if (p && !as_it_is) {
      make_masses(*t, weight ? weight + begin : nullptr, p + begin, n, made + begin);
    }
    if (p || label - begin >= n) return row() + begin;
    __builtin_memcpy(copy, made + begin, n * sizeof(T));
    copy[label - begin] = label_mass_in_row().other;
    return copy;
  }
};

}  // namespace XENTROPY_TIER
}  // namespace xentropy
