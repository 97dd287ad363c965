// The sums of a row with dense targets, chunk by chunk, in one pass and without knowing the most
// probable class m beforehand: of exps, masses q_c and products q_c (x_m - x_c), each without m.
//
// Where a chunk has a logit larger than all before, its sums are taken without that class. For
// logits in random order this happens about log(number of chunks) times. What was before that chunk
// is then taken from the sum of all exps, so one-hot targets have the bits of labels; the products
// before rise with the logit: no term is negative, nothing cancels.
//
// A loop for each sum: in one for all, the exps wait for registers.
#pragma once
#include "rows/dense_target.h"
#include "rows/tail.h"

namespace xentropy {
namespace XENTROPY_TIER {

// The sum of all exps, and the sum of those but the maximum's: two lanes that are added to at once,
// as Total has one.
template <class T>
struct TailLane {
  LaneTotal<T> all, tail;
  XENTROPY_INLINE_MEMBER void add(Vec<T> v) {
    all.add(v);
    tail.add(v);
  }
};

template <class T>
struct TailTotal {
  TailLane<T> at[kLine<T> / kLanes<T>];

  XENTROPY_INLINE_MEMBER Total<T> of(LaneTotal<T> TailLane<T>::* which) const {
    Total<T> total;
    for (size_t v = 0; v < kLine<T> / kLanes<T>; ++v) total.at[v] = at[v].*which;
    return total;
  }
  XENTROPY_INLINE_MEMBER void set_tail(const Total<T>& total) {
    for (size_t v = 0; v < kLine<T> / kLanes<T>; ++v) at[v].tail = total.at[v];
  }
  XENTROPY_INLINE_MEMBER void add(const TailTotal& more) {
    for (size_t v = 0; v < kLine<T> / kLanes<T>; ++v) {
      at[v].all.add(more.at[v].all);
      at[v].tail.add(more.at[v].tail);
    }
  }
};

template <class T>
struct ExpSums {
  const T* x;
  size_t classes;
  DirectExp<T, true> exp;
  TailTotal<T> part, closed;  // of the current part of the row, and of those before: see sum_parts
  double e_peak = 0;          // the exp of the maximum so far
  T peak = T(-INFINITY);
  size_t at = 0;  // its class

  ExpSums(const T* row, size_t n, double scale)
      : x(row), classes(n), exp(guessed_exp<T, true>(row, n, scale)) {}

  // Adds the classes [begin, begin + n); writes their exps to e. Returns whether one of them is
  // larger than all before. kScaled: scale is not 1.
  template <bool kScaled>
  XENTROPY_INLINE_MEMBER bool chunk(size_t begin, size_t n, T* e) {
    const DirectExp<T, kScaled> exp_of = {exp.k, exp.scale};
    if (begin % kRowPart == 0) close();
    const Total<T> before = part.of(&TailLane<T>::all);
    const Vec<T> most = exps_and_maximum<true>(x + begin, n, exp_of, e, part);
    if (!any(most > splat(peak))) return false;
    peak = max_lanes<T>(most);
    at = begin + find(x + begin, n, peak);
    without_peak(before, n, e, at - begin);
    return true;
  }

  // The chunk with the maximum, its exp at e[place], is the first that the two sums differ in.
  XENTROPY_INLINE_MEMBER void without_peak(Total<T> before, size_t n, T* e, size_t place) {
    const T of_peak = e[place];
    e[place] = 0;
    sum_chunk(e, n, before);
    e[place] = of_peak;
    e_peak = double(of_peak);
    part.set_tail(before);
    closed.set_tail(closed.of(&TailLane<T>::all));
  }

  void close() {
    closed.add(part);
    part = {};
  }

  RowSums sums(double logit_scale) const {
    Total<T> tail = closed.of(&TailLane<T>::tail);
    tail.add(part.of(&TailLane<T>::tail));
    return dense_row_sums(tail, e_peak, peak, logit_scale);
  }
};

// The sums over a row of its masses q_c and of the products q_c (peak - x_c), without the class of
// the peak. When the peak rises by d, the products so far rise by d for each mass: no term is
// negative, nothing cancels.
template <class T>
struct MassSums {
  Total<T> mass, away;
  Sum passed = {0, 0};  // the masses of previous peaks
  Sum risen = {0, 0};   // what the products have risen by
  double of_peak = 0;   // the mass of the current one

  // Adds n classes.
  XENTROPY_INLINE_MEMBER void chunk(const T* x, const T* q, size_t n, T peak) {
    const Vec<T> top = splat(peak), zero = {};
    add_vectors<T>(n, mass, [&](size_t i, size_t lanes) XENTROPY_INLINE_LAMBDA {
      if (i % kLine<T> == 0) prefetch_l2(q + i + (8 << 10) / sizeof(T));
      return lanes == kLanes<T> ? load(q + i) : load_first(q + i, lanes, zero);
    });
    const Total<T> before = away;
    add_vectors<T>(n, away, [&](size_t i, size_t lanes) XENTROPY_INLINE_LAMBDA {
      if (lanes == kLanes<T>) return load(q + i) * (top - load(x + i));
      return load_first(q + i, lanes, zero) * (top - load_first(x + i, lanes, top));
    });
    if (!away.any_nan()) return;
    away = before;
    excluded_chunk(x, q, n, top);
  }

  // The same where logits are -inf, with 0 * inf = 0.
  __attribute__((noinline)) void excluded_chunk(const T* x, const T* q, size_t n, Vec<T> top) {
    const Vec<T> zero = {};
    add_vectors<T>(n, away, [&](size_t i, size_t lanes) {
      const Vec<T> m = load_first(q + i, lanes, zero);
      return m == zero ? zero : m * (top - load_first(x + i, lanes, top));
    });
  }

  // Takes another class, of which `mass` is the mass, for the peak.
  void raise(double by, double mass) {
    passed = exact_sum(passed, of_peak);
    risen = exact_sum(risen, mass_times(total(), by));
    of_peak = mass;
  }

  double total() const {
    const Sum others = mass.value(), all = exact_sum(others.value, passed.value);
    return all.value + (all.lost + (others.lost + passed.lost));
  }
  double distance() const { return away.value().value + (risen.value + risen.lost); }
};

// One row in steps 2 and 3.
template <class T>
struct DenseInFlight {
  DenseTarget<T> target;
  ExpSums<T> exps;
  MassSums<T> sums;

  DenseInFlight(const DenseTarget<T>& of_row, const T* x)
      : target(of_row), exps(x, of_row.t->classes, of_row.t->logit_scale) {}

  // The classes [begin, begin + n): their exps go to e. `scratch` is a chunk.
  void chunk(size_t begin, size_t n, T* e, T* scratch) {
    if (target.t->logit_scale != 1) return add_chunk<true>(begin, n, e, scratch);
    add_chunk<false>(begin, n, e, scratch);
  }

  // One function for rows with and without gradient. kScaled: logit_scale is not 1.
  template <bool kScaled>
  __attribute__((noinline)) void add_chunk(size_t begin, size_t n, T* e, T* scratch) {
    const T before = exps.peak;
    const bool higher = exps.template chunk<kScaled>(begin, n, e);
    const T* q = target.chunk_of(begin, n, scratch);
    if (higher) {
      if (q != scratch) __builtin_memcpy(scratch, q, n * sizeof(T));
      q = scratch;
      sums.raise(double(exps.peak) - double(before), double(scratch[exps.at - begin]));
      scratch[exps.at - begin] = 0;
    }
    sums.chunk(exps.x + begin, q, n, exps.peak);
  }

  DenseSums<T> finish() const {
    return {exps.sums(target.t->logit_scale), exps.at, sums.of_peak, sums.total(), sums.distance()};
  }
};

}  // namespace XENTROPY_TIER
}  // namespace xentropy
