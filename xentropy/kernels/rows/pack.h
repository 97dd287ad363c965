// Rows that are settled together: the sums of a pack of rows, and in vectors of rows their losses
// and factors.
//
// Cost: a division, a logarithm and two more divisions, one after the other, take as long for one
// row as for a vector of rows: some 40 ns. The bits are those of common/settle.h for one row, which
// also serves the rows that are not fine: their range was not guessed, or a number is not normal.
#pragma once
#include "common/settle.h"
#include "common/workspace.h"
#include "simd/trees.h"

namespace xentropy {
namespace XENTROPY_TIER {

// The exps of a pack leave room in L1 for the logits and gradients that pass by: with twice as many
// rows of 1,000 classes what settling gains is lost to L2.
constexpr size_t kPackRows = 16, kPackBytes = size_t(16) << 10;
template <class T>
XENTROPY_INLINE size_t pack_rows(size_t classes) {
  const size_t rows = kPackBytes / (classes * sizeof(T));
  return rows < 1 ? 1 : rows < kPackRows ? rows : kPackRows;
}

// `rows` rows of exps and one number per row each. Without a gradient there are only the chunks.
template <class T>
struct PackWorkspace {
  size_t rows, stride;
  T *chunks, *exps = nullptr;
  RowSumsOf<double*> sums = {};
  GradientFactors<T>* finish = nullptr;

  PackWorkspace(size_t classes, bool keeps_exps, Arena& arena)
      : rows(pack_rows<T>(classes)), stride(padded_row(classes)), chunks(take_chunks<T>(arena)) {
    if (keeps_exps) exps = take<T>(arena, rows * stride);
    double** const numbers[] = {&sums.tail_sum,        &sums.tail_lost, &sums.e_target,
                                &sums.target_distance, &sums.origin,    &sums.origin_distance,
                                &sums.differences};
    for (double** array : numbers) *array = take<double>(arena, kPackRows);
    finish = take<GradientFactors<T>>(arena, kPackRows);
  }

  T* row(size_t q) const { return exps + q * stride; }
  void put(size_t q, const RowSums& s) const {
    sums.tail_sum[q] = s.tail_sum;
    sums.tail_lost[q] = s.tail_lost;
    sums.e_target[q] = s.e_target;
    sums.target_distance[q] = s.target_distance;
    sums.origin[q] = s.origin;
    sums.origin_distance[q] = s.origin_distance;
    sums.differences[q] = s.differences;
  }
  // The sums of row q, or of the rows from q on in a vector.
  template <class D>
  XENTROPY_INLINE_MEMBER RowSumsOf<D> get(size_t q) const {
    const auto at = [=](const double* p) XENTROPY_INLINE_LAMBDA {
      if constexpr (sizeof(D) == sizeof(double)) return p[q];
      if constexpr (sizeof(D) > sizeof(double)) return load(p + q);
    };
    return {at(sums.tail_sum),        at(sums.tail_lost), at(sums.e_target),
            at(sums.target_distance), at(sums.origin),    at(sums.origin_distance),
            at(sums.differences)};
  }
};

// What becomes of the rows of a pack.
template <class T>
struct PackResults {
  T factor[kPackRows], rest[kPackRows], bias[kPackRows], target_entry[kPackRows];
  double loss[kPackRows];
  int64_t settled[kPackRows];  // 0: not in vectors
};

// The values f(q), ... of the rows from q on, 1 beyond the last of n.
template <class F>
XENTROPY_INLINE VD lanes_of(size_t q, size_t n, const F& f) {
  VD v = splat(1.0);
  for (size_t i = 0; i < kLanes<double> && q + i < n; ++i) v[i] = f(q + i);
  return v;
}

// What rows are multiplied by: a vector of their weights, and one of their upstream gradients.
struct RowFactors {
  VD sample_weight, upstream;
};
template <class S>
XENTROPY_INLINE RowFactors row_factors(const Block<S>& b, size_t first, size_t q, size_t n) {
  RowFactors f = {splat(1.0), splat(b.upstream_all)};
  if (b.sample_weight) {
    f.sample_weight = lanes_of(q, n, [&](size_t i) { return b.sample_weight[first + i]; });
  }
  if (b.upstream) f.upstream *= lanes_of(q, n, [&](size_t i) { return b.upstream[first + i]; });
  return f;
}

// Stores the losses and factors of the rows from q on. `fine`: rows that may be settled here.
template <class T>
XENTROPY_INLINE void put_settled(const SettledOf<VD>& settled, const RowSumsOf<VD>& s,
                                 const FactorsOf<VD>& f, IntVec<double> fine, size_t q,
                                 PackResults<T>* to) {
  fine &= sums_in_range<T>(s.tail_sum, s.e_target) & odds_are_exact<T>(s);
  fine &= f.normal & (magnitude(f.factor) <= Exp<T>::kMaxFactor);
  store_narrow(to->factor + q, f.factor);
  store_narrow(to->rest + q, f.rest);
  store_narrow(to->bias + q, f.bias);
  store_narrow(to->target_entry + q, f.target_entry);
  store(to->loss + q, settled.loss);
  store(reinterpret_cast<double*>(to->settled + q), (VD)fine);
}

// Settles a pack, the rows [first, first + n) of a block. lanes(q, &results) does so for the rows
// from q on in a vector, alone(q) for one row, whose factors it returns; place(q) is the class
// whose exp the target entry replaces.
template <class S, class T, class Lanes, class Place, class Alone>
XENTROPY_INLINE void settle_rows(const Block<S>& b, size_t first, size_t n,
                                 const PackWorkspace<T>& w, const Lanes& lanes, const Place& place,
                                 const Alone& alone) {
  PackResults<T> of;
  for (size_t q = 0; q < n; q += kLanes<double>) lanes(q, &of);
  for (size_t q = 0; q < n; ++q) {
    w.finish[q] = {of.factor[q], of.rest[q], of.bias[q]};
    if (b.labels[first + q] == kIgnored) {
      b.loss[first + q] = 0;
      w.finish[q] = {0, 0, 0};  // its exps are 0: gradient +0
    } else if (of.settled[q]) {
      b.loss[first + q] = of.loss[q];
      if (w.exps) w.row(q)[place(q)] = of.target_entry[q];
    } else {
      w.finish[q] = alone(q);
    }
  }
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
