// Sums over the classes of a row: exps chunk by chunk, added up in float64 lanes.
//
// The order of every addition depends on the position in the row alone, never on
// threads, batch, address or k.
#pragma once
#include "exp.h"
#include "vector_lanes.h"

namespace xentropy {
namespace XENTROPY_TIER {

// 16 cache lines: the piece of a row that is exponentiated, and stored, at a time.
template <class T>
constexpr size_t kChunk = 16 * kLine<T>;

template <class T>
XENTROPY_INLINE T sum_lanes(Vec<T> v) {
  alignas(kVectorBytes) T lane[kLanes<T>];
  store(lane, v);
  for (size_t width = kLanes<T> / 2; width > 0; width /= 2) {
    for (size_t i = 0; i < width; ++i) lane[i] += lane[i + width];
  }
  return lane[0];
}

// value + lost, exactly, where value alone is the rounded sum.
struct Sum {
  double value, lost;
};

// The sum a + b without a rounding error (two-sum).
XENTROPY_INLINE Sum exact_sum(double a, double b) {
  const double sum = a + b, moved = sum - a;
  return {sum, (a - (sum - moved)) + (b - moved)};
}

// The sum of a row so far: in float64 lanes, compensated if T is float64 itself.
template <class T>
struct Total;
template <>
struct Total<double> {
  VD lanes = {}, lost = {};
  XENTROPY_INLINE_MEMBER void add(VD v) {  // two-sum: no digit of v is lost
    const VD sum = lanes + v, moved = sum - lanes;
    lost += (lanes - (sum - moved)) + (v - moved);
    lanes = sum;
  }
  XENTROPY_INLINE_MEMBER Sum value() const {
    Sum sum = {0, 0};
    double rest = sum_lanes<double>(lost);
    for (size_t i = 0; i < kLanes<double>; ++i) {
      sum = exact_sum(sum.value, lanes[i]);
      rest += sum.lost;
    }
    if (rest != rest) return {sum.value, 0};  // an infinite sum has lost nan
    return exact_sum(sum.value, rest);
  }
};
template <>
struct Total<float> {
  VD lanes[2] = {};
  XENTROPY_INLINE_MEMBER void add(VF v) {
    lanes[0] += widen_lower(v);
    lanes[1] += widen_upper(v);
  }
  XENTROPY_INLINE_MEMBER Sum value() const { return {sum_lanes<double>(lanes[0] + lanes[1]), 0}; }
};

// Adds f(i, lanes) for the vectors at i = 0, L, 2L, ... below n to `total`; the last may
// have fewer lanes that count. An exp meets at most two roundings on its way into the
// total (16 vectors in 8 sums, the sums in pairs), so that no gradient is off by more than
// 4 ulp. Adding 4 deep would be 3 % faster and reach 4.4 ulp.
template <class T, class F>
XENTROPY_INLINE void add_vectors(size_t n, Total<T>& total, const F& f) {
  constexpr size_t L = kLanes<T>;
  size_t i = 0;
  for (; i + 16 * L <= n; i += 16 * L) {
    Vec<T> sum[8];
    for (size_t q = 0; q < 8; ++q) sum[q] = f(i + q * L, L);
    for (size_t q = 0; q < 8; ++q) sum[q] += f(i + (q + 8) * L, L);
    for (size_t q = 0; q < 8; q += 2) total.add(sum[q] + sum[q + 1]);
  }
  for (; i + 2 * L <= n; i += 2 * L) {
    const Vec<T> first = f(i, L);
    total.add(first + f(i + L, L));
  }
  for (; i < n; i += L) total.add(f(i, n - i < L ? n - i : L));
}

// Prefetching for a kernel that only reads: 16 KB ahead into L2, 2 KB ahead into L1.
template <class S>
XENTROPY_INLINE void prefetch_read(const S* x) {
  prefetch_far(x + (16 << 10) / sizeof(S));
  prefetch_near(x + (2 << 10) / sizeof(S));
}

// e[i] = exp(x[i]) for i < n, and 0 up to a whole vector; adds them to `total`.
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

// Adds what exp_chunk has left in e to `total`.
template <class T>
XENTROPY_INLINE void sum_chunk(const T* e, size_t n, Total<T>& total) {
  add_vectors<T>(n, total, [&](size_t i, size_t) XENTROPY_INLINE_LAMBDA { return load(e + i); });
}

// Sums of logits are taken 2^-32 times as large, so that logits of 3e38 do not overflow.
constexpr double kSmall = 0x1p-32;

// Adds kSmall * (x[0..n) - origin) to `total`.
template <class S, class T>
XENTROPY_INLINE void sum_differences(const S* x, size_t n, T origin, Total<T>& total) {
  const Vec<T> small = splat(T(kSmall)), o = splat(origin), small_o = o * small;
  add_vectors<T>(n, total, [&](size_t i, size_t lanes) XENTROPY_INLINE_LAMBDA {
    const Vec<T> v = lanes == kLanes<T> ? load(x + i) : load_first(x + i, lanes, o);
    return v * small - small_o;
  });
}

// Sums over a row of masses q: of q_c, and of q_c (peak - x_c).
template <class T>
struct MassAccumulator {
  Total<T> mass, away;

  void chunk(const T* x, const T* q, size_t n, T peak) {
    const Vec<T> top = splat(peak), small = splat(T(kSmall)), small_top = top * small, zero = {};
    const auto masses = [&](size_t i, size_t lanes) XENTROPY_INLINE_LAMBDA {
      return lanes == kLanes<T> ? load(q + i) : load_first(q + i, lanes, zero);
    };
    add_vectors<T>(n, mass, masses);
    add_vectors<T>(n, away, [&](size_t i, size_t lanes) XENTROPY_INLINE_LAMBDA {
      const Vec<T> v = lanes == kLanes<T> ? load(x + i) : load_first(x + i, lanes, top);
      const Vec<T> m = masses(i, lanes);
      return m == zero ? zero : m * (small_top - v * small);  // 0 * inf = 0
    });
  }
  double total() const { return mass.value().value; }
  double distance() const { return away.value().value / kSmall; }
};

template <class T>
XENTROPY_INLINE T max_lanes(Vec<T> v) {
  alignas(kVectorBytes) T lane[kLanes<T>];
  store(lane, v);
  for (size_t width = kLanes<T> / 2; width > 0; width /= 2) {
    for (size_t i = 0; i < width; ++i) {
      lane[i] = lane[i] < lane[i + width] ? lane[i + width] : lane[i];
    }
  }
  return lane[0];
}

// The lanes of the largest of x[0..n); nan where one is nan and happens to be met last.
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

// What the loss needs to know of a row. x is scaled, and
//
//     e_c = exp(x_c - offset) * 2^kTop
//
// Logits are kept as distances from the offset, so that no digit is lost where all of
// them are large.
struct RowSums {
  double others;           // sum of e over all classes but the target
  double others_lost;      // what rounding took from it
  double e_target;         // e of the target
  double target_distance;  // x_target - offset
  double origin;           // a logit near the row's largest
  double origin_distance;  // origin - offset
  double differences;      // sum over c of x_c - origin; only with label smoothing
  double total() const { return others + e_target; }
  Sum exact_total() const {
    const Sum sum = exact_sum(others, e_target);
    return {sum.value, sum.lost + others_lost};
  }
};

// Exponentiates a row chunk by chunk, keeping the target's exp apart from the others'.
template <class T>
struct RowAccumulator {
  Total<T> others, differences;
  double e_target = 0;

  template <bool kSmooth, bool kPrefetch, class S, class Exp>
  XENTROPY_INLINE_MEMBER void chunk(const S* x, size_t begin, size_t n, size_t target,
                                    const Exp& exp, T origin, T* e) {
    const Total<T> before = others;
    if (kSmooth) sum_differences(x + begin, n, origin, differences);  // first: e may be x + begin
    exp_chunk<kPrefetch>(x + begin, n, exp, e, others);
    if (target - begin < n) {
      e_target = e[target - begin];
      e[target - begin] = 0;
      others = before;
      sum_chunk(e, n, others);
    }
  }
};

}  // namespace XENTROPY_TIER
}  // namespace xentropy
