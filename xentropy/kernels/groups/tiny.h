// Steps 1 to 4 of the group kernel, and the scaling, for two to four classes.
//
// Cost: with so few classes a tree of shuffles per row and a scalar access per target take longer
// than all of the exps. So kLanes<T> rows are transposed into one vector per class, where maxima
// and sums are plain operations and the target is found by comparison. The scratch holds these
// columns. A transposition takes kClasses^2 permutations and as many masks.
#pragma once
#include "groups/settle.h"

namespace xentropy {
namespace XENTROPY_TIER {

// The index of class c of row q in GroupRows::exps.
template <class T>
XENTROPY_INLINE size_t index_in_group(size_t q, size_t c, size_t classes) {
  constexpr size_t L = kLanes<T>;
  return is_tiny(classes) ? q / L * L * classes + c * L + q % L : q * classes + c;
}

// Permutes the elements of n vectors from[i] to n vectors to[j]: lane l of to[j] is element
// source(j, l) of the concatenated `from`.
template <class T, size_t n>
struct Transposition {
  IntVec<T> index[n][n], mask[n][n];

  template <class Source>
  explicit Transposition(const Source& source) {
    constexpr size_t L = kLanes<T>;
    for (size_t j = 0; j < n; ++j) {
      for (size_t i = 0; i < n; ++i) {
        for (size_t l = 0; l < L; ++l) {
          const size_t element = source(j, l);
          index[j][i][l] = permutation<T>(int64_t(element % L));
          mask[j][i][l] = element / L == i ? -1 : 0;
        }
      }
    }
  }

  XENTROPY_INLINE_MEMBER void operator()(const Vec<T> (&from)[n], Vec<T> (&to)[n]) const {
    for (size_t j = 0; j < n; ++j) {
      IntVec<T> v = {};
      for (size_t i = 0; i < n; ++i) v |= (IntVec<T>)permute(from[i], index[j][i]) & mask[j][i];
      to[j] = (Vec<T>)v;
    }
  }
};
// kLanes<T> rows of n classes to one vector per class, and back.
template <class T, size_t n>
Transposition<T, n> to_columns() {
  return Transposition<T, n>([](size_t c, size_t row) { return row * n + c; });
}
template <class T, size_t n>
Transposition<T, n> to_rows() {
  constexpr size_t L = kLanes<T>;
  return Transposition<T, n>(
      [](size_t i, size_t l) { return (i * L + l) % n * L + (i * L + l) / n; });
}

// Adds n vectors, at most 4: float32 in pairs in float32, then in float64; float64 with the
// rounding error.
template <size_t n>
XENTROPY_INLINE void store_sums(const VF (&v)[n], double* value, double*) {
  Halves h = halves(n > 1 ? v[0] + v[1] : v[0]);
  VD low = widen(h.low), high = widen(h.high);
  if constexpr (n > 2) {
    h = halves(n > 3 ? v[2] + v[n - 1] : v[2]);
    low += widen(h.low);
    high += widen(h.high);
  }
  store(value, low);
  store(value + kLanes<double>, high);
}
template <size_t n>
XENTROPY_INLINE void store_sums(const VD (&v)[n], double* value, double* lost) {
  LaneSums s = {v[0], VD{}};
  for (size_t i = 1; i < n; ++i) {
    const LaneSums next = exact_sums(s.value, v[i]);
    s = {next.value, s.lost + next.lost};
  }
  s = exact_sums(s.value, s.lost);
  store(value, s.value);
  store(lost, s.value - s.value == 0 ? s.lost : VD{});
}

// The maximum of every row, and as `label` its class: the first of equal ones; the last class of
// all if none is equal (nan). kClasses: classes per row.
template <size_t kClasses, class T>
void tiny_peaks(const T* x, const GroupRows<T>& rows) {
  const GroupRows<T> g = rows;
  const Transposition<T, kClasses> transpose = to_columns<T, kClasses>();
  for (size_t q = 0; q < g.padded; q += kLanes<T>) {
    Vec<T> from[kClasses], v[kClasses];
    for (size_t c = 0; c < kClasses; ++c) from[c] = load(x + q * kClasses + c * kLanes<T>);
    transpose(from, v);
    Vec<T> most = v[0], label = splat(T(kClasses - 1));
    for (size_t c = 1; c < kClasses; ++c) most = max(most, v[c]);
    for (size_t c = kClasses - 1; c-- > 0;) label = v[c] == most ? splat(T(c)) : label;
    store(g.peak + q, most);
    store(g.label + q, label);
  }
}

// Steps 1 to 4. The label of an ignored row is negative: its e_target is 0. kClasses: classes per
// row. kScaled: logit_scale is not 1.
template <size_t kClasses, bool kScaled, class T>
void tiny_exps(const T* x, double logit_scale, const T* next, const GroupRows<T>& rows) {
  constexpr size_t L = kLanes<T>;
  const GroupRows<T> g = rows;
  const Transposition<T, kClasses> transpose = to_columns<T, kClasses>();
  const Anchors<T> anchors(logit_scale);
  const AnchoredExp<T, kScaled> exp_of(logit_scale);
  for (size_t q = 0; q < g.padded; q += L) {
    Vec<T> v[kClasses], e[kClasses], target = {};
    for (size_t c = 0; c < kClasses; ++c) {
      const size_t i = q * kClasses + c * L;
      prefetch_l2(next + i + (4 << 10) / sizeof(T));
      prefetch_l1(next + i);
      e[c] = load(x + i);
    }
    transpose(e, v);
    Vec<T> most = v[0];
    for (size_t c = 1; c < kClasses; ++c) most = max(most, v[c]);
    const Vec<T> anchor = anchors(most), label = load(g.label + q);
    for (size_t c = 0; c < kClasses; ++c) {
      const Vec<T> exp = exp_of(v[c], anchor);
      const IntVec<T> is_target = label == splat(T(c));
      target = (Vec<T>)((IntVec<T>)target | ((IntVec<T>)exp & is_target));
      e[c] = (Vec<T>)((IntVec<T>)exp & ~is_target);
      store(g.exps + q * kClasses + c * L, e[c]);
    }
    store(g.e_target + q, target);
    store_sums(e, g.tail_sum + q, g.tail_lost + q);
  }
}

// Scales exps to gradients in place and transposes them back to rows. kClasses: classes per row.
// kBias: subtract the bias.
template <size_t kClasses, bool kBias, class T>
void tiny_scale(const GroupRows<T>& rows) {
  constexpr size_t L = kLanes<T>;
  constexpr bool kRest = sizeof(T) == 8;
  const GroupRows<T> g = rows;
  const Transposition<T, kClasses> transpose = to_rows<T, kClasses>();
  for (size_t q = 0; q < g.padded; q += L) {
    const Vec<T> factor = load(g.factor + q), label = load(g.label + q);
    const Vec<T> target_entry = load(g.target_entry + q), bias = kBias ? load(g.bias + q) : factor;
    const Vec<T> rest = kRest ? load(g.rest + q) : factor;
    Vec<T> v[kClasses], out[kClasses];
    for (size_t c = 0; c < kClasses; ++c) {
      const Vec<T> other = load(g.exps + q * kClasses + c * L);
      const Vec<T> e = label == splat(T(c)) ? target_entry : other;
      Vec<T> low = {};
      if (kRest) low = e * rest;
      if (kBias) low -= bias;
      v[c] = kRest || kBias ? fma(e, factor, low) : e * factor;
    }
    transpose(v, out);
    for (size_t i = 0; i < kClasses; ++i) store(g.exps + q * kClasses + i * L, out[i]);
  }
}

// Calls f(Constant<classes>()) for 2 to kTinyClasses classes.
template <class F>
XENTROPY_INLINE void with_classes(size_t classes, const F& f) {
  if (classes == 2) return f(Constant<2>());
  if (classes == 3) return f(Constant<3>());
  f(Constant<4>());
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
