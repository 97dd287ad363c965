// Which kernel serves which call.
#pragma once
#include "targets.h"

namespace xentropy {

// Has every class of a row target mass of its own?
static inline bool is_dense(const CrossEntropyCall& c) {
  return c.probabilities.data || (c.weight && c.terms.label_smoothing != 0);
}

template <class S>
static inline bool by_columns(const CrossEntropyCall& c) {
  return !is_dense(c) && are_columns<S>(c.logits);
}

// The group kernel serves rows of up to so many classes. Measured on Zen 4, 4e6 elements, one
// thread, loss and gradient, in 1e9 elements a second, groups / rows:
//
//     classes           64         128        200        320        512
//     v4 float32     1.71/0.51  1.88/0.87  1.87/1.18  1.64/1.75  1.83/1.58
//     v3 float32     1.46/0.48  1.43/0.81  1.54/0.97  1.52/1.19  1.44/1.42
//     v4 float64     0.72/0.40  0.67/0.56  0.69/0.70  0.69/0.77  0.69/0.82
//     v3 float64     0.57/0.35  0.58/0.43  0.56/0.51  0.54/0.54  0.54/0.60
template <class T>
constexpr size_t kGroupClasses = sizeof(T) == 4 ? 320 : 192;

// For dense targets, of up to so many. Class probabilities, as above but on a busy machine:
//
//     classes           64         128        200        320        512        700
//     v4 float32     0.91/0.32  0.96/0.45  0.91/0.65  0.99/0.67  0.85/0.73  0.89/0.74
//     v3 float32     0.71/0.24  0.80/0.49  0.76/0.62  0.79/0.59  0.75/0.68  0.73/0.67
//     v4 float64     0.36/0.19  0.37/0.29  0.38/0.30  0.37/0.33  0.37/0.37  0.34/0.43
//     v3 float64     0.25/0.14  0.34/0.25  0.20/0.18  0.19/0.16  0.32/0.33  0.31/0.36
//
// Weights with label smoothing, at 512 float32: v4 1.19/1.17, v3 0.89/0.95.
template <class T>
constexpr size_t kDenseGroupClasses = sizeof(T) == 4 ? 512 : 256;

template <class S>
static inline bool by_groups(const CrossEntropyCall& c) {
  typedef Arithmetic<S> T;
  const size_t most = is_dense(c) ? kDenseGroupClasses<T> : kGroupClasses<T>;
  return !by_columns<S>(c) && c.terms.classes <= most;
}

// The one place that chooses a kernel for elements that are stored as S.
template <class S>
static inline CrossEntropyKernel<S> choose_kernel(const Tier& tier, const CrossEntropyCall& c) {
  if constexpr (sizeof(S) == 2) {
    return row_kernel(tier, S());
  } else {
    const Kernels<S>& k = kernels_of<S>(tier);
    if (is_dense(c)) return by_groups<S>(c) ? k.dense_groups : k.dense;
    if (by_columns<S>(c)) return k.columns;
    return by_groups<S>(c) ? k.groups : k.rows;
  }
}

// Are there 16-bit rows that the row kernel reads, and writes, where they lie? The bits are
// those of the same rows widened first.
template <class S>
static inline bool direct_half(const CrossEntropyCall& c) {
  return in_place_rows<S>(c.logits) && (!c.gradient.data || in_place_rows<S>(c.gradient)) &&
         !is_dense(c) && !by_groups<S>(c) && !c.float64;
}

// Can the kernel work on this array where it lies? Groups must be adjacent rows. All else passes
// through scratch, on its way to the same kernel, so that it changes no bit.
template <class S>
static inline bool is_direct(const CrossEntropyCall& c, const Layout& a) {
  if (!a.data) return true;
  if (by_columns<S>(c)) return in_place_columns<S>(a);
  const bool adjacent =
      a.rows.run() == 1 || a.rows.step() == ptrdiff_t(c.terms.classes * sizeof(S));
  return in_place_rows<S>(a) && (adjacent || !by_groups<S>(c));
}

// visit(S()) with the type in which the kernel finds the logits.
template <class Visit>
static inline auto for_stored(const CrossEntropyCall& c, Visit visit) {
  if (c.float64) return visit(double());
  if (direct_half<F16>(c)) return visit(F16());
  if (direct_half<BF16>(c)) return visit(BF16());
  return visit(float());
}

}  // namespace xentropy
