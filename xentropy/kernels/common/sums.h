// Sums over the classes of a row: the exps are computed chunk by chunk and added in float64 lanes.
//
// The order of all additions depends on the position in the row alone, never on threads, batch,
// address, k or vector width.
#pragma once
#include "common/range.h"
#include "tier.h"
#include "simd/vector_lanes.h"

namespace xentropy {
namespace XENTROPY_TIER {

// Elements per chunk, 16 cache lines: a row is exponentiated, and stored, chunk by chunk.
template <class T>
constexpr size_t kChunk = 16 * kLine<T>;

// value is the rounded sum, value + lost the exact one. D is double, or a vector of doubles with
// one row per lane.
template <class D>
struct SumOf {
  D value, lost;
};
using Sum = SumOf<double>;

// a + b without a rounding error (two-sum).
template <class D>
XENTROPY_INLINE SumOf<D> exact_sum(D a, D b) {
  const D sum = a + b, moved = sum - a;
  return {sum, (a - (sum - moved)) + (b - moved)};
}

// The same for a sum with the rounding errors of earlier additions.
XENTROPY_INLINE Sum exact_sum(const Sum& a, double b) {
  const Sum sum = exact_sum(a.value, b);
  return {sum.value, a.lost + sum.lost};
}

// Sums have as many lanes as a cache line has elements, whatever the tier's vectors, so that all
// tiers with fused multiply-add compute the same bits. A LaneTotal is one vector of T of these
// lanes, in float64; compensated if T is float64 itself.
template <class T>
struct LaneTotal;
template <>
struct LaneTotal<double> {
  VD lanes = {}, lost = {};
  XENTROPY_INLINE_MEMBER void add(VD v) {  // two-sum: no digit of v is lost
    const VD sum = lanes + v, moved = sum - lanes;
    lost += (lanes - (sum - moved)) + (v - moved);
    lanes = sum;
  }
  XENTROPY_INLINE_MEMBER void add(const LaneTotal& more) {
    add(more.lanes);
    lost += more.lost;
  }
  XENTROPY_INLINE_MEMBER VD sum() const { return lanes; }
};
template <>
struct LaneTotal<float> {
  VD lower = {}, upper = {};
  XENTROPY_INLINE_MEMBER void add(VF v) {
    lower += widen_lower(v);
    upper += widen_upper(v);
  }
  XENTROPY_INLINE_MEMBER void add(const LaneTotal& more) {
    lower += more.lower;
    upper += more.upper;
  }
  XENTROPY_INLINE_MEMBER VD sum() const { return lower + upper; }
};

// The sum over the n vectors v and over their lanes, in halves: the second half is added to the
// first.
template <size_t n>
XENTROPY_INLINE double sum_halves(VD (&v)[n]) {
  for (size_t width = n / 2; width > 0; width /= 2) {
    for (size_t i = 0; i < width; ++i) v[i] += v[i + width];
  }
  return fold_lanes<double>(v[0], [](auto a, auto b) { return a + b; });
}

template <size_t n>
XENTROPY_INLINE Sum sum_of(const LaneTotal<float> (&at)[n]) {
  VD v[2 * n];
  for (size_t i = 0; i < n; ++i) {
    v[2 * i] = at[i].lower;
    v[2 * i + 1] = at[i].upper;
  }
  return {sum_halves(v), 0};
}
template <size_t n>
XENTROPY_INLINE Sum sum_of(const LaneTotal<double> (&at)[n]) {
  VD lost[n];
  for (size_t i = 0; i < n; ++i) lost[i] = at[i].lost;
  double rest = sum_halves(lost);
  Sum sum = {0, 0};
  for (size_t i = 0; i < kLine<double>; ++i) {
    sum = exact_sum(sum.value, at[i / kLanes<double>].lanes[i % kLanes<double>]);
    rest += sum.lost;
  }
  if (rest != rest) return {sum.value, 0};  // the error terms of an infinite sum are nan
  return exact_sum(sum.value, rest);
}

// The running sum of a row.
template <class T>
struct Total {
  LaneTotal<T> at[kLine<T> / kLanes<T>];
  XENTROPY_INLINE_MEMBER void add(const Total& more) {
    for (size_t v = 0; v < kLine<T> / kLanes<T>; ++v) at[v].add(more.at[v]);
  }
  XENTROPY_INLINE_MEMBER Sum value() const { return sum_of(at); }
  XENTROPY_INLINE_MEMBER bool any_nan() const {
    VD sum = at[0].sum();
    for (size_t v = 1; v < kLine<T> / kLanes<T>; ++v) sum += at[v].sum();
    return any(sum != sum);
  }
};

// Adds f(i, lanes) to `total`, a Total<T> or its like, for the vectors at i = 0, L, ... below n;
// `lanes` is L, or less for the last. An exp is rounded at most twice on its way into the total (16
// lines in 8 sums, the sums in pairs), so that no gradient is off by more than 4 ulp; once for
// float64 without fma, whose exp is off by 1.05 ulp. Sums 4 additions deep would be 3 % faster and
// reach 4.4 ulp.
template <class T, class Sums, class F>
XENTROPY_INLINE void add_vectors(size_t n, Sums& total, const F& f) {
  constexpr size_t L = kLanes<T>, K = kLine<T>;
  constexpr bool kTwice = kHasFma || sizeof(T) == 4;
  size_t i = 0;
  for (; kTwice && i + 16 * K <= n; i += 16 * K) {
    for (size_t v = 0; v < K; v += L) {
      Vec<T> sum[8];
      for (size_t q = 0; q < 8; ++q) sum[q] = f(i + q * K + v, L);
      for (size_t q = 0; q < 8; ++q) sum[q] += f(i + (q + 8) * K + v, L);
      for (size_t q = 0; q < 8; q += 2) total.at[v / L].add(sum[q] + sum[q + 1]);
    }
  }
  for (; i + 4 * K <= n; i += 4 * K) {
    for (size_t v = 0; v < K; v += L) {
      const Vec<T> first = f(i + v, L), second = f(i + K + v, L);
      const Vec<T> third = f(i + 2 * K + v, L), fourth = f(i + 3 * K + v, L);
      if (kTwice) {
        total.at[v / L].add((first + second) + (third + fourth));
      } else {
        total.at[v / L].add(first + second);
        total.at[v / L].add(third + fourth);
      }
    }
  }
  for (; i < n; i += L) total.at[i % K / L].add(f(i, n - i < L ? n - i : L));
}

// Prefetch for a kernel that only reads: 16 KB ahead into L2, 2 KB ahead into L1.
template <class S>
XENTROPY_INLINE void prefetch_read(const S* x) {
  prefetch_l2(x + (16 << 10) / sizeof(S));
  prefetch_l1(x + (2 << 10) / sizeof(S));
}

// e[i] = exp(x[i]) for i < n, and 0 up to a whole vector; adds them to `total`. kPrefetch: prefetch
// x.
template <bool kPrefetch, class S, class T, class Exp>
XENTROPY_INLINE void exp_chunk(const S* x, size_t n, const Exp& exp, T* e, Total<T>& total) {
  add_vectors<T>(n, total, [&](size_t i, size_t lanes) XENTROPY_INLINE_LAMBDA {
    if (kPrefetch && i % kLine<S> == 0) prefetch_read(x + i);
    const Vec<T> v =
        exp(lanes == kLanes<T> ? load(x + i) : load_first(x + i, lanes, splat(T(-INFINITY))));
    store(e + i, v);
    return v;
  });
}

// Adds the exps that exp_chunk has written to e.
template <class T>
XENTROPY_INLINE void sum_chunk(const T* e, size_t n, Total<T>& total) {
  add_vectors<T>(n, total, [&](size_t i, size_t) XENTROPY_INLINE_LAMBDA { return load(e + i); });
}

// Sets the exps below kMinExactExp to 0.
template <class T>
void flush_row(T* e, size_t classes) {
  for (size_t c = 0; c < classes; ++c) e[c] = e[c] < Exp<T>::kMinExactExp ? T(0) : e[c];
}

// Sums of logits are scaled by this factor, so that logits of 3e38 do not overflow.
constexpr double kLogitSumScale = 0x1p-32;

// Adds kLogitSumScale * (x[0..n) - origin) to `total`.
template <class S, class T>
XENTROPY_INLINE void sum_differences(const S* x, size_t n, T origin, Total<T>& total) {
  const Vec<T> small = splat(T(kLogitSumScale)), o = splat(origin), small_o = o * small;
  add_vectors<T>(n, total, [&](size_t i, size_t lanes) XENTROPY_INLINE_LAMBDA {
    const Vec<T> v = lanes == kLanes<T> ? load(x + i) : load_first(x + i, lanes, o);
    return fma(v, small, -small_o);
  });
}

// Sums over a row with target masses q: sum_c q_c and sum_c q_c (peak - x_c). `scale`: that of the
// products, a power of two. With 1 the smallest masses count, but logits of 3e38 may overflow.
template <class T>
struct MassAccumulator {
  Total<T> mass, away;
  T scale = 1;

  void chunk(const T* x, const T* q, size_t n, T peak) {
    const Vec<T> top = splat(peak), small = splat(scale), small_top = top * small, zero = {};
    const auto masses = [&](size_t i, size_t lanes) XENTROPY_INLINE_LAMBDA {
      return lanes == kLanes<T> ? load(q + i) : load_first(q + i, lanes, zero);
    };
    add_vectors<T>(n, mass, masses);
    add_vectors<T>(n, away, [&](size_t i, size_t lanes) XENTROPY_INLINE_LAMBDA {
      const Vec<T> v = lanes == kLanes<T> ? load(x + i) : load_first(x + i, lanes, top);
      const Vec<T> m = masses(i, lanes);
      return m == zero ? zero : m * fma(v, -small, small_top);  // 0 * inf = 0
    });
  }
  double total() const { return mass.value().value; }
  double distance() const { return away.value().value / double(scale); }
};

template <class T>
XENTROPY_INLINE T max_lanes(Vec<T> v) {
  return fold_lanes<T>(v, [](auto a, auto b) { return a < b ? b : a; });
}

// A vector whose largest lane is the maximum of x[0..n). Arbitrary if an element is nan.
template <class S, class T = Arithmetic<S>>
XENTROPY_INLINE Vec<T> max_vector(const S* x, size_t n) {
  constexpr size_t L = kLanes<T>;
  const Vec<T> none = splat(T(-INFINITY));
  Vec<T> m[4] = {none, none, none, none};
  size_t i = 0;
  for (; i + 4 * L <= n; i += 4 * L) {
    for (size_t q = 0; q < 4; ++q) m[q] = max(m[q], load(x + i + q * L));
  }
  for (; i + L <= n; i += L) m[0] = max(m[0], load(x + i));
  if (i < n) m[0] = max(m[0], load_first(x + i, n - i, none));
  return max(max(m[0], m[1]), max(m[2], m[3]));
}
template <class S>
XENTROPY_INLINE Arithmetic<S> max_of(const S* x, size_t n) {
  return max_lanes<Arithmetic<S>>(max_vector(x, n));
}

// The sums of a row from which its loss and gradient follow. x is scaled here, and
//
//     e_c = exp(x_c - offset) * 2^kTop
//
// Logits are kept as distances from the offset, so that no digit is lost where all of them are
// large. D is double, a vector of doubles with one row per lane, or an array.
template <class D>
struct RowSumsOf {
  D tail_sum;         // sum of e over all classes but the target
  D tail_lost;        // the rounding error of tail_sum
  D e_target;         // e of the target
  D target_distance;  // x_target - offset
  D origin;           // a logit near the row's largest
  D origin_distance;  // origin - offset
  D differences;      // sum over c of x_c - origin; with label smoothing only
  D total() const { return tail_sum + e_target; }
  SumOf<D> exact_total() const {
    const SumOf<D> sum = exact_sum(tail_sum, e_target);
    return {sum.value, sum.lost + tail_lost};
  }
};
using RowSums = RowSumsOf<double>;

// The sums of a row, or of a part of it. The target's exp is not in tail_sum.
template <class T>
struct RowAccumulator {
  Total<T> tail_sum, differences;  // the latter with label smoothing only
  double e_target = 0;

  // Adds the n classes from `begin` on. make(e, total) writes their exps to e and adds them to
  // `total`. The exps are summed a second time if one of them is the target's, which is then 0 in
  // e, or if `flush` sets subnormal ones to 0.
  template <class Make>
  XENTROPY_INLINE_MEMBER void chunk(size_t begin, size_t n, size_t target, bool flush, T* e,
                                    const Make& make) {
    const Total<T> before = tail_sum;
    make(e, tail_sum);
    const bool has_target = target - begin < n;
    if (flush) flush_row(e, n);
    if (has_target) {
      e_target = e[target - begin];
      e[target - begin] = 0;
    }
    if (flush || has_target) {
      tail_sum = before;
      sum_chunk(e, n, tail_sum);
    }
  }

  void add(const RowAccumulator& part, bool smooth) {
    tail_sum.add(part.tail_sum);
    if (smooth) differences.add(part.differences);
    e_target += part.e_target;
  }
};

// The sums of a row in parts of kRowPart classes: part(begin, end) returns those of [begin, end).
// Threads that share a row add the same parts in the same order, so the result has the same bits.
template <class T, class Part>
XENTROPY_INLINE RowAccumulator<T> sum_parts(size_t classes, bool smooth, const Part& part) {
  RowAccumulator<T> sums;
  for (size_t begin = 0, end; begin < classes; begin = end) {
    end = classes - begin > kRowPart ? begin + kRowPart : classes;
    sums.add(part(begin, end), smooth);
  }
  return sums;
}

// Calls each(begin, n) for every chunk of [begin, end).
template <class T, class Each>
XENTROPY_INLINE void for_chunks(size_t begin, size_t end, const Each& each) {
  for (; begin < end; begin += kChunk<T>) {
    each(begin, end - begin < kChunk<T> ? end - begin : kChunk<T>);
  }
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
