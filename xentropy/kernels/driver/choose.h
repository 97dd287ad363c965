// The choice of a kernel for a call.
#pragma once
#include "driver/targets.h"

namespace xentropy {

// Whether every class of a row has a target mass.
static inline bool is_dense(const CrossEntropyCall& c) {
  return c.probabilities.data || (c.weight && c.terms.label_smoothing != 0);
}

template <class S>
static inline bool uses_columns(const CrossEntropyCall& c) {
  return !is_dense(c) && are_columns<S>(c.logits);
}

// The largest number of classes for the group kernel. Measured on Zen 4, 4e6 elements, one thread,
// loss and gradient, streamed, in 1e9 elements per second, groups / rows:
//
//     classes          128        200        320        400        512
//     v4 float32     2.6/0.9    2.72/1.37  2.88/2.32  2.79/2.44  2.94/2.87
//     v3 float32     1.61/0.82  2.33/0.98  2.32/1.38  2.32/1.51  2.28/1.74
//     v4 float64     1.01/0.71  0.99/0.87  0.97/1.04  0.95/1.11  0.95/1.18
//     v3 float64     0.78/0.50  0.79/0.58  0.77/0.68  0.76/0.71  0.76/0.73
//
// 16-bit rows use the limit of float32. The row kernel reads them in place, the group kernel after
// widening: v4 float16 with 400 classes 1.12/2.19.
//
// Dense targets have the same limit, as one-hot targets have the bits of labels. Measured alike, in
// blocks of 65,536 elements (2e6 in all in float64):
//
//     classes               128        192        256        320        512
//     probabilities
//     v4 float32     0.75/0.53  0.74/0.81  0.80/0.84  0.80/0.97  0.83/0.89
//     v3 float32     0.57/0.48  0.62/0.54  0.70/0.69  0.62/0.83  0.65/0.88
//     v4 float64     0.35/0.40  0.32/0.44  0.34/0.46  0.33/0.47  0.32/0.43
//     v3 float64     0.25/0.25  0.27/0.33  0.26/0.27  0.28/0.33  0.26/0.36
//     weights with label smoothing
//     v4 float32     1.03/0.57  0.97/0.85  1.06/0.91  1.06/1.10  1.10/1.22
//     v3 float32     0.75/0.51  0.81/0.58  0.98/0.72  0.86/0.88  0.85/1.03
//     v4 float64     0.47/0.43  0.42/0.48  0.45/0.53  0.45/0.57  0.43/0.53
//     v3 float64     0.32/0.26  0.35/0.35  0.34/0.32  0.36/0.39  0.34/0.41
template <class T>
constexpr size_t kGroupClasses = sizeof(T) == 4 ? 320 : 192;

template <class S>
static inline bool uses_groups(const CrossEntropyCall& c) {
  return !uses_columns<S>(c) && c.terms.classes <= kGroupClasses<Arithmetic<S>>;
}

// The kernel for elements stored as S.
template <class S>
static inline CrossEntropyKernel<S> choose_kernel(const Tier& tier, const CrossEntropyCall& c) {
  const auto& k = kernels_of(tier, S());
  if constexpr (sizeof(S) == 2) {
    return k.rows;
  } else {
    if (is_dense(c)) return uses_groups<S>(c) ? k.dense_groups : k.dense;
    if (uses_columns<S>(c)) return k.columns;
    return uses_groups<S>(c) ? k.groups : k.rows;
  }
}

// Whether the row kernel reads and writes the 16-bit rows in place. The results have the same bits
// as those of rows that are widened first.
template <class S>
static inline bool direct_half(const CrossEntropyCall& c) {
  return in_place_rows<S>(c.logits) && (!c.gradient.data || in_place_rows<S>(c.gradient)) &&
         !is_dense(c) && !uses_groups<S>(c) && !c.float64 && c.softcap == 0;
}

// Whether the rows are adjacent and their classes contiguous, so that a group kernel can read them.
// A block ends where a run of rows does, and few rows take a group kernel as long as a vector of
// them: arrays of short runs are better staged.
template <class S>
static inline bool are_adjacent(const Layout& a) {
  const size_t size = a.classes.size() * sizeof(S), run = a.rows.run();
  const bool long_runs = run >= 16 || run == a.rows.size();
  return in_place_rows<S>(a) && (run == 1 || a.rows.step() == ptrdiff_t(size)) && long_runs;
}

// Whether the kernel accesses this array in place. Other arrays are staged in scratch for the same
// kernel, so that the layout changes no bit.
template <class S>
static inline bool is_direct(const CrossEntropyCall& c, const Layout& a) {
  if (!a.data) return true;
  if (uses_columns<S>(c)) return in_place_columns<S>(a);
  return uses_groups<S>(c) ? are_adjacent<S>(a) : in_place_rows<S>(a);
}

// Calls visit(S()), S: the type in which the kernel reads the logits.
template <class Visit>
static inline auto for_stored(const CrossEntropyCall& c, Visit visit) {
  if (c.float64) return visit(double());
  if (direct_half<F16>(c)) return visit(F16());
  if (direct_half<BF16>(c)) return visit(BF16());
  return visit(float());
}

// The softmax family: long or short rows, for any layout.
template <class T>
static inline bool uses_groups(const SoftmaxCall& c) {
  return c.classes <= kGroupClasses<T>;
}
template <class T>
static inline SoftmaxKernel<T> choose_kernel(const Tier& tier, const SoftmaxCall& c) {
  const Kernels<T>& k = kernels_of(tier, T());
  return uses_groups<T>(c) ? k.softmax_groups : k.softmax;
}
template <class T>
static inline bool is_direct(const SoftmaxCall& c, const Layout& a) {
  return uses_groups<T>(c) ? are_adjacent<T>(a) : in_place_rows<T>(a);
}

// Statistics: long or short rows, for any layout. Long 16-bit rows are read in place.
template <class S>
static inline bool short_rows(const StatisticsCall& c) {
  return c.rows.terms.classes <= kGroupClasses<Arithmetic<S>>;
}
// Whether short rows are read in place with a lane for each. Their bits are those of the group
// kernel.
template <class S>
static inline bool uses_columns(const StatisticsCall& c) {
  return sizeof(S) > 2 && c.rows.softcap == 0 && short_rows<S>(c) &&
         in_place_columns<S>(c.rows.logits);
}
template <class S>
static inline StatisticsKernel<S> choose_kernel(const Tier& tier, const StatisticsCall& c) {
  const auto& k = kernels_of(tier, S());
  if constexpr (sizeof(S) > 2) {
    if (uses_columns<S>(c)) return k.statistics_columns;
    if (short_rows<S>(c)) return k.statistics_groups;
  }
  return k.statistics;
}
template <class S>
static inline bool is_direct(const StatisticsCall& c) {
  if (c.rows.softcap != 0) return false;
  const Layout& a = c.rows.logits;
  if (uses_columns<S>(c)) return true;
  return short_rows<S>(c) ? sizeof(S) > 2 && are_adjacent<S>(a) : in_place_rows<S>(a);
}
template <class Visit>
static inline auto for_stored(const StatisticsCall& c, Visit visit) {
  if (c.rows.float64) return visit(double());
  if (is_direct<F16>(c)) return visit(F16());
  if (is_direct<BF16>(c)) return visit(BF16());
  return visit(float());
}

// Distillation: long or short rows, for any layout; a single class has nothing to add up. In 256
// rows in cache, in microseconds, groups / rows:
//
//     classes         100      150      200      256      320      400
//     v4 float32    47/97   64/108   81/117  102/122  132/149  163/168
//     v4 float64   94/152  135/186  175/219  221/243  282/292  348/351
//
// A batch of few rows takes as long as a vector of them.
template <class T>
static inline bool uses_groups(const DistillationCall& c) {
  const size_t classes = c.rows.terms.classes;
  return c.teacher.data && classes > 1 && classes <= kGroupClasses<T>;
}
template <class T>
static inline DistillationKernel<T> choose_kernel(const Tier& tier, const DistillationCall& c) {
  const Kernels<T>& k = kernels_of(tier, T());
  return uses_groups<T>(c) ? k.distillation_groups : k.distillation;
}
template <class T>
static inline bool is_direct(const DistillationCall& c, const Layout& a) {
  if (!a.data) return true;
  return uses_groups<T>(c) ? are_adjacent<T>(a) : in_place_rows<T>(a);
}

// Gradients from a given lse: long or short rows, with the same bits. Long 16-bit rows are read in
// place.
template <class S>
static inline bool short_rows(const LogProbGradientCall& c) {
  return c.rows.terms.classes <= kGroupClasses<Arithmetic<S>>;
}
template <class S>
static inline bool is_direct(const LogProbGradientCall& c, const Layout& a) {
  return c.rows.softcap == 0 && in_place_rows<S>(a) && !(sizeof(S) == 2 && short_rows<S>(c));
}
template <class S>
static inline LseGradientKernel<S> choose_kernel(const Tier& tier, const LogProbGradientCall& c) {
  const auto& k = kernels_of(tier, S());
  if constexpr (sizeof(S) > 2) {
    const auto adjacent = [&](const Layout& a) {
      return !is_direct<S>(c, a) || are_adjacent<S>(a);
    };
    const bool all = adjacent(c.rows.logits) && adjacent(c.rows.gradient);
    if (short_rows<S>(c) && all) return k.lse_gradient_groups;
  }
  return k.lse_gradient;
}
template <class Visit>
static inline auto for_stored(const LogProbGradientCall& c, Visit visit) {
  const auto direct = [&](auto s) {
    typedef decltype(s) S;
    return is_direct<S>(c, c.rows.logits) && is_direct<S>(c, c.rows.gradient);
  };
  if (c.rows.float64) return visit(double());
  if (direct(F16())) return visit(F16());
  if (direct(BF16())) return visit(BF16());
  return visit(float());
}

}  // namespace xentropy
