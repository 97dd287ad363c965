// The gradient of rows whose log-sum-exp is known: probabilities times an affine function of their
// logarithms (LseRow in tier.h has the formula), and single entries that the caller knows.
//
// Cost: one exp per element, each element read once and written once: 8 bytes in float32. The exp
// is made where the element is written; no row is kept in scratch. Entries overwrite what was
// written, after all rows of the block and the fence behind streamed stores. A cache line that two
// adjacent rows share is written by regular stores.
//
// With n = round(lse / ln 2), f = exp(n ln 2 - lse), e_c = exp(x_c) 2^-(n - kTop):
//
//     gradient_c = e_c (a + b (x_c - centre)),  a = on_p f 2^-kTop,  b = on_log f 2^-kTop
//
// The centre is kept as head + rest: where the logits are large and all alike, x_c - centre is not.
// Rows whose factors are not ordinary numbers, whose logits are far away, or that are balanced, are
// computed in float64, from distances.
#pragma once
#include "common/peak.h"
#include "common/workspace.h"

namespace xentropy {
namespace XENTROPY_TIER {

// Maps x_c to its gradient. kPlain: logit_scale is 1 and on_log is 0, which have the same bits in
// the other instance too.
template <class T, bool kPlain>
struct LseGradientMap {
  ExponentOffset<T> k{0};
  LogitScale<T> scale{1};
  Vec<T> a = {}, b = {}, centre = {}, centre_rest = {};

  XENTROPY_INLINE_MEMBER Vec<T> operator()(Vec<T> x) const {
    Vec<T> rest = {};
    x = k.clamp(x);  // 0 * inf must not happen
    if (!kPlain) x = scaled<T>(x, scale, &rest);
    const Vec<T> e = exp_from<T, !kPlain>(x, rest, k.anchor, true);
    return kPlain ? e * a : e * fma((x - centre) - centre_rest + rest, b, a);
  }
};

// exp(x) of a number near 0, the same on every platform.
XENTROPY_INLINE double exp_near_0(double x) {
  return DirectExp<double, false>{ExponentOffset<double>(0), LogitScale<double>(1)}(splat(x))[0];
}

// What a row's lse is in the exps: lse = n ln 2 - log(factor) - kTop ln 2.
template <class T>
struct LseFactor {
  double n, factor;

  explicit LseFactor(double lse)
      : n(__builtin_rint(lse * Exp<double>::kLog2E)),
        factor(exp_near_0(0 - logit_distance(n, lse, 1)) * Exp<T>::kFromTop) {}

  // Can the exps be multiplied by this? Below, they could underflow early; above, subnormal exps
  // would show, which differ between tiers.
  static bool ordinary(double by) {
    const double least = sizeof(T) == 4 ? 0x1p-120 : 0x1p-1000, size = __builtin_fabs(by);
    return by == 0 || (size >= least && size <= Exp<T>::kMaxFactor);
  }
  bool serves(const LseRow& row) const {
    return __builtin_fabs(n) <= Exp<T>::kMaxOffset && ordinary(row.on_p * factor) &&
           ordinary(row.on_log * factor) && !row.balanced;
  }
};

template <class T, bool kPlain>
LseGradientMap<T, kPlain> lse_gradient_map(const LseRow& row, const LseFactor<T>& f, double scale) {
  LseGradientMap<T, kPlain> map;
  map.k = ExponentOffset<T>(f.n - Exp<T>::kTop, scale);
  map.scale = LogitScale<T>(scale);
  map.a = splat(T(row.on_p * f.factor));
  map.b = splat(T(row.on_log * f.factor));
  map.centre = splat(T(row.centre));
  map.centre_rest = splat(T(row.centre - double(T(row.centre))));
  return map;
}

template <class S>
void fill_row(S* out, size_t n, Arithmetic<S> value) {
  for (size_t c = 0; c < n; ++c) set_value(out + c, value);
}

// The n <= kChunk<double> logits at x as float64, padded with -inf to a whole vector.
template <class S>
void widen_chunk(const S* x, size_t n, double* to) {
  for (size_t i = 0; i < n; ++i) to[i] = double(value_of(x[i]));
  for (size_t i = n; i % kLanes<double> != 0; ++i) to[i] = -INFINITY;
}

// Any row. chunks: scratch, two chunks.
template <class S>
void lse_gradient_in_float64(const LseGradientBlock<S>& b, size_t r, double* chunks) {
  const LseRow& row = b.row[r];
  const S* x = b.x + ptrdiff_t(r) * b.x_stride;
  S* out = b.gradient + ptrdiff_t(r) * b.gradient_stride;
  double *v = chunks, *logs = chunks + kChunk<double>, on_peak = 0;
  const VD anchor = splat(row.lse / b.logit_scale), above = splat(row.lse - row.centre),
           least = splat(-0x1p11), none = {};  // the exps of smaller logits are 0
  const PeakExp<double> exp = {ExponentOffset<double>(0), LogitScale<double>(b.logit_scale),
                               anchor};
  const size_t m = row.balanced ? peak_of(x, b.classes).at : b.classes;
  Total<double> others;
  for_chunks<double>(0, b.classes, [&](size_t begin, size_t n) {
    widen_chunk(x + begin, n, v);
    if (m - begin < n) on_peak = exp(splat(v[m - begin]))[0] * row.on_p;
    for (size_t i = 0; i < n; i += kLanes<double>) {
      const VD logit = load(v + i), any_exp = exp(logit);
      const VD e = any_exp < Exp<double>::kMinExactExp ? none : any_exp;
      const VD times_log = e * (max(least, (logit - anchor) * b.logit_scale) + above);
      store(logs + i, times_log);
      store(v + i, e * row.on_p + times_log * row.on_log);
    }
    if (m - begin < n) logs[m - begin] = 0;
    if (row.balanced) sum_chunk(logs, n, others);
    for (size_t i = 0; i < n; ++i) set_value(out + begin + i, Arithmetic<S>(v[i]));
  });
  if (row.balanced) {
    set_value(out + m, Arithmetic<S>(on_peak - row.on_log * others.value().value));
  }
}

// out[i] = map(x[i]) for i < n, a vector at a time; x may be out.
template <class S, class Map>
__attribute__((noinline)) void map_vectors(const S* x, size_t n, const Map& map, S* out) {
  typedef Arithmetic<S> T;
  constexpr size_t L = kLanes<T>;
  size_t i = 0;
  for (; i + L <= n; i += L) store(out + i, map(load(x + i)));
  if (i < n) store_first(out + i, map(load_first(x + i, n - i, Vec<T>{})), n - i);
}

// The same of a row, which the caches do not hold; whole cache lines are `streamed`.
template <class S, class Map>
void map_row(const S* x, size_t n, const Map& map, S* out, bool streamed) {
  typedef Arithmetic<S> T;
  constexpr size_t L = kLanes<T>, K = kLine<S>, kAhead = (1 << 10) / sizeof(S);
  const size_t past = reinterpret_cast<uintptr_t>(out) % kLineBytes / sizeof(S);
  size_t i = streamed && past ? K - past : 0;
  if (i > n) i = n;
  if (i) map_vectors(x, i, map, out);
  for (; i + K <= n; i += K) {
    prefetch_read(x + i);
    if (!streamed) prefetch_write(out + i + kAhead);
    Vec<T> v[K / L];
    for (size_t q = 0; q < K / L; ++q) v[q] = map(load(x + i + q * L));
    const auto line = [&](size_t q) XENTROPY_INLINE_LAMBDA { return v[q / L]; };
    if (streamed) {
      stream_line(out + i, line);
    } else {
      store_line(out + i, line);
    }
  }
  if (i < n) map_vectors(x + i, n - i, map, out + i);
}

// All rows, but for the entries. kPlain: as above.
template <class S, bool kPlain>
void lse_gradient_rows(const LseGradientBlock<S>& b, double* chunks, bool streamed) {
  typedef Arithmetic<S> T;
  const size_t C = b.classes;
  for (size_t r = 0; r < b.rows; ++r) {
    const LseRow& row = b.row[r];
    const S* x = b.x + ptrdiff_t(r) * b.x_stride;
    S* out = b.gradient + ptrdiff_t(r) * b.gradient_stride;
    if (row.ignored || row.lse - row.lse != 0) {
      fill_row(out, C, row.ignored ? T(0) : T(NAN));
      continue;
    }
    const LseFactor<T> factor(row.lse);
    if (factor.serves(row)) {
      const auto map = lse_gradient_map<T, kPlain>(row, factor, b.logit_scale);
      map_row(x, C, map, out, streamed);
    } else {
      lse_gradient_in_float64(b, r, chunks);
    }
  }
}

template <class S>
void put_entries(const LseGradientBlock<S>& b) {
  for (size_t r = 0; r < b.rows; ++r) {
    if (b.row[r].lse - b.row[r].lse != 0) continue;
    S* out = b.gradient + ptrdiff_t(r) * b.gradient_stride;
    for (size_t i = r * b.entries; i < (r + 1) * b.entries; ++i) {
      if (b.at[i] != kIgnored) set_value(out + b.at[i], Arithmetic<S>(b.value[i]));
    }
  }
}

template <class S>
size_t lse_gradient_bytes(size_t) {
  Arena counted = {nullptr, 0};
  take_chunks<double>(counted);
  return counted.used;
}

template <class S>
void lse_gradient(const LseGradientBlock<S>& b, char* workspace, bool streamed) {
  Arena arena = {workspace, 0};
  double* chunks = take_chunks<double>(arena);
  bool plain = b.logit_scale == 1;
  for (size_t r = 0; r < b.rows; ++r) plain &= b.row[r].on_log == 0;
  if (plain) {
    lse_gradient_rows<S, true>(b, chunks, streamed);
  } else {
    lse_gradient_rows<S, false>(b, chunks, streamed);
  }
  if (streamed) stream_fence();
  put_entries(b);
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
