// The numbers of rows whose log-sum-exp is known, and the gradients at the classes selected, for
// kLanes<double> rows at a time.
//
// Cost, per vector of rows and one class each: two exps of float64, a division if there is a scale.
//
// With n = round(lse / ln 2), f = exp(n ln 2 - lse), e_c = exp(x_c) 2^-(n - kTop):
//
//     gradient_c = e_c (a + b (x_c - centre)),  a = on_p f 2^-kTop,  b = on_log f 2^-kTop
//
// The centre is kept as head + rest: where the logits are large and all alike, x_c - centre is not.
//
// At the classes selected, of a row with the upstream gradients g_j of log p, it is
//
//     sum_{j: y_j = c} g_j (1 - p_c) - (sum of the other g_j, less that of the lse) p_c
//         - g p_c (log p_c + H)
//
// from log p: 1 - p = -expm1(log p) has all its digits where p is almost 1. No other class has a p
// above 1/2 then. Where p is not large, the log p given, a float32 number perhaps, has fewer digits
// of it than x - lse.
#pragma once
#include "arena.h"
#include "common/expm1.h"
#include "common/lanes.h"

namespace xentropy {
namespace XENTROPY_TIER {

// How a row is computed: by LseGradientMap; it is 0 or nan throughout, without being read; in
// float64; so, and the part of on_log at the largest logit is minus the sum of all other ones,
// which is exact where that class has almost all probability.
constexpr int64_t kMapped = 0, kFilled = 1, kFar = 2, kBalanced = 3;

constexpr size_t kLseRows = 128;  // at most, at a time

// The gradient of row r is e_c (a[r] + b[r] (x_c - centre[r] - centre_rest[r])); with p and log p,
// p_c (on_p[r] + on_log[r] (x_c - middle[r])). Filled rows: the first of them, of any e_c.
template <class T>
struct LseRows {
  T *anchor, *lowest, *highest, *a, *b, *centre, *centre_rest;
  double *on_p, *on_log, *middle;
  int64_t* kind;

  explicit LseRows(Arena& arena) {
    T** const of_map[] = {&anchor, &lowest, &highest, &a, &b, &centre, &centre_rest};
    for (T** array : of_map) *array = take<T>(arena, kLseRows);
    double** const numbers[] = {&on_p, &on_log, &middle};
    for (double** array : numbers) *array = take<double>(arena, kLseRows);
    kind = take<int64_t>(arena, kLseRows);
  }
};

// What is true of any of the rows.
struct LseSummary {
  bool filled, on_log;
};

// Below this entropy the part of on_log at a most probable class that is not selected is taken from
// the others: its own log p + H would be off by |lse| 2^-53, and H has no more digits.
template <class T>
constexpr double kConfident = sizeof(T) == 4 ? 0x1p-6 : 0x1p-1;

constexpr double kLarge = -1;  // log p

// The n <= kLanes<double> numbers p[0], p[step], ... in lanes; 0 in the others.
template <class V, class E>
__attribute__((noinline)) void gather_lanes(const E* p, size_t step, size_t n, V* to) {
  E lanes[kLanes<double>] = {};
  for (size_t q = 0; q < n; ++q) lanes[q] = p[q * step];
  __builtin_memcpy(to, lanes, sizeof lanes);
}
template <class V, class E>
XENTROPY_INLINE V strided_lanes(const E* p, size_t step, size_t n) {
  V v;
  if (step == 1 && n == kLanes<double>) {
    __builtin_memcpy(&v, p, sizeof v);
  } else {
    gather_lanes(p, step, n, &v);
  }
  return v;
}

// The reverse.
XENTROPY_INLINE void put_strided(double* p, size_t step, size_t n, VD v) {
  if (step == 1 && n == kLanes<double>) return store(p, v);
  for (size_t q = 0; q < n; ++q) p[q * step] = v[q];
}

// Rows of a vector: the first, and how many.
struct LseVector {
  size_t first, n;
  VD lse, entropy, on_entropy, on_lse;
};

XENTROPY_INLINE LseVector lse_vector(const LseSelection& b, size_t r, size_t n) {
  const auto of = [&](const double* p)
                      XENTROPY_INLINE_LAMBDA { return strided_lanes<VD>(p + r, 1, n); };
  return {r, n, of(b.lse), of(b.entropy), of(b.on_entropy), of(b.on_lse)};
}

// Upstream gradients of selected classes: of the class itself, and of all others less the lse.
struct OwnAndOthers {
  VD own, others;
};
XENTROPY_INLINE OwnAndOthers upstream_of(const LseSelection& b, const LseVector& v,
                                         IntVec<double> at) {
  OwnAndOthers sums = {VD{}, VD{} - v.on_lse};
  for (size_t j = 0; j < b.entries; ++j) {
    const size_t i = v.first * b.entries + j;
    const auto also = strided_lanes<IntVec<double>>(b.at + i, b.entries, v.n);
    const VD more = strided_lanes<VD>(b.on_log_prob + i, b.entries, v.n);
    sums.own = (IntVec<double>)(also == at) ? sums.own + more : sums.own;
    sums.others = ((also != at) & (also != kIgnored)) ? sums.others + more : sums.others;
  }
  return sums;
}

// Sets the gradients at class j of each row, where b.value has its logit; returns where it is large
// and counts.
XENTROPY_INLINE IntVec<double> settle_class(const LseSelection& b, const LseVector& v, size_t j) {
  const size_t i = v.first * b.entries + j;
  const auto of = [&](const double* p)
                      XENTROPY_INLINE_LAMBDA { return strided_lanes<VD>(p + i, b.entries, v.n); };
  const auto at = strided_lanes<IntVec<double>>(b.at + i, b.entries, v.n);
  const VD given = of(b.log_prob), restored = of(b.value) * b.logit_scale - v.lse;
  const VD log_p = given < kLarge ? restored : given, zero = {};
  const ExpAndLess e = exp_and_less_1(log_p);
  const OwnAndOthers g = upstream_of(b, v, at);
  const VD terms = v.on_entropy * e.exp * (log_p + v.entropy);
  const VD by_entropy = ((v.on_entropy == 0) | (e.exp == 0)) ? zero : terms;
  const VD value = (-g.own * e.less_1 - g.others * e.exp - by_entropy) * b.logit_scale;
  put_strided(b.value + i, b.entries, v.n, value);
  return (IntVec<double>)((at != kIgnored) & (log_p > -0.69));
}

// x -> exp(x) near 0.
XENTROPY_INLINE VD exp_near_0(VD x) {
  return DirectExp<double, false>{ExponentOffset<double>(0), LogitScale<double>(1)}(x);
}

// Can the exps be multiplied by this, the upstream gradient times their factor? Below, they could
// underflow early, as the product itself may have; above, subnormal exps would show, which differ
// between tiers.
template <class T>
XENTROPY_INLINE IntVec<double> is_ordinary(VD upstream, VD product) {
  const VD size = magnitude(product);
  const double least = sizeof(T) == 4 ? 0x1p-120 : 0x1p-1000;
  return (IntVec<double>)(((size >= least) & (size <= Exp<T>::kMaxFactor)) | (upstream == 0));
}

XENTROPY_INLINE VD lanes_or(IntVec<double> mask, VD value, VD other) {
  return mask ? value : other;
}

// Sets the numbers of row v.first + q, which is row `to` + q of s. sum: of the upstream gradients
// of a row; large: a selected class is.
template <class T>
XENTROPY_INLINE void put_lse_vector(const LseSelection& b, const LseVector& v, VD sum,
                                    IntVec<double> large, const LseRows<T>& s, size_t to,
                                    LseSummary* any_of) {
  typedef IntVec<double> I;
  const VD zero = {}, scale = splat(b.logit_scale), magic = splat(Exponent<double>::kMagic);
  const I ignored = (I)(strided_lanes<I>(b.labels + v.first, 1, v.n) == kIgnored);
  const I filled = ignored | (I)(v.lse - v.lse != 0);
  const VD n = lanes_or(filled, zero, (v.lse * Exp<double>::kLog2E + magic) - magic);
  const VD below = fma(n, splat(-Exp<double>::kLn2Head), v.lse) - n * Exp<double>::kLn2Rest;
  const VD factor = exp_near_0(0 - below) * Exp<T>::kFromTop;
  const VD on_p = 0 - sum * scale, on_log = 0 - v.on_entropy * scale;
  const VD a = on_p * factor, by_log = on_log * factor;
  const VD middle = lanes_or((I)(v.on_entropy == 0), zero, v.lse - v.entropy);
  const VD centre = lanes_or(filled, zero, middle), k = n - Exp<T>::kTop;
  const VD nan_or_0 = lanes_or(ignored, zero, splat(double(NAN)));
  store_narrow(s.anchor + to, kRoundToInteger<T> - k);
  store_narrow(s.lowest + to, OffsetBounds<T>::lowest(k, b.logit_scale));
  if (!kHasScalef) store_narrow(s.highest + to, OffsetBounds<T>::highest(k, b.logit_scale));
  store_narrow(s.a + to, lanes_or(filled, nan_or_0, a));
  store_narrow(s.b + to, lanes_or(filled, zero, by_log));
  store_narrow(s.centre + to, centre);
  store_narrow(s.centre_rest + to, centre - rounded<T>(centre));
  store(s.on_p + to, on_p);
  store(s.on_log + to, on_log);
  store(s.middle + to, middle);
  const I balanced = (I)((v.on_entropy != 0) & (v.entropy < kConfident<T>)) & ~large;
  const I served = (I)(magnitude(n) <= Exp<T>::kMaxOffset) & is_ordinary<T>(on_p, a) &
                   is_ordinary<T>(on_log, by_log) & ~balanced;
  const I kind = filled ? I{} + kFilled : served ? I{} : balanced ? I{} + kBalanced : I{} + kFar;
  __builtin_memcpy(s.kind + to, &kind, sizeof kind);
  any_of->filled |= any(filled);
  any_of->on_log |= any((I)(on_log != 0));
}

// The logits of the selected classes of rows, as float64.
template <class S>
void take_selected(const LseGradientBlock<S>& b, size_t first, size_t n) {
  const LseSelection& s = b.of_rows;
  for (size_t r = first; r < first + n; ++r) {
    const S* x = b.x + ptrdiff_t(r) * b.x_stride;
    for (size_t i = r * s.entries; i < (r + 1) * s.entries; ++i) {
      s.value[i] = s.at[i] == kIgnored ? 0 : double(value_of(x[s.at[i]]));
    }
  }
}

// Settles the n <= kLseRows rows from `first` on, where b.value has the logits selected.
template <class T>
__attribute__((noinline)) LseSummary settle_selected(const LseSelection& b, size_t first, size_t n,
                                                     const LseRows<T>& s) {
  constexpr size_t D = kLanes<double>;
  LseSummary any_of = {};
  for (size_t i = 0; i < n; i += D) {
    const LseVector v = lse_vector(b, first + i, n - i < D ? n - i : D);
    IntVec<double> large = {};
    for (size_t j = 0; j < b.entries; ++j) large |= settle_class(b, v, j);
    const OwnAndOthers sum = upstream_of(b, v, IntVec<double>{} + kIgnored);
    put_lse_vector(b, v, sum.others, large, s, i, &any_of);
  }
  return any_of;
}

// Settles them; row `first` becomes row 0 of s.
template <class S, class T = Arithmetic<S>>
LseSummary settle_lse_rows(const LseGradientBlock<S>& b, size_t first, size_t n,
                           const LseRows<T>& s) {
  take_selected(b, first, n);
  return settle_selected(b.of_rows, first, n, s);
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
