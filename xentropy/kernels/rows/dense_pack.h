// Rows with dense targets that are settled together (rows/pack.h), and the sums of those of which
// there are several in a pack.
//
// Such a row is still in the L1 cache when its maximum is known, so a second pass can take its sums
// without the most probable class m. In one pass (rows/dense_sums.h) a chunk is summed again where
// the maximum rises, about twice in a row of 1,000 classes, and that takes a fifth of the time.
#pragma once
#include "rows/dense_target.h"
#include "rows/pack.h"
#include "rows/tail.h"

namespace xentropy {
namespace XENTROPY_TIER {

template <class T>
struct DenseWorkspace {
  PackWorkspace<T> pack;
  T* loss_exps = nullptr;  // without a gradient: the exps of one row, or of a chunk
  T* masses;  // those that are computed: with labels one row for all, else a row for each of a pack
  double *q_m, *q_tail, *distance;  // see DenseSums
  size_t* m;

  DenseWorkspace(size_t classes, bool gradient, Arena& arena) : pack(classes, gradient, arena) {
    if (!gradient) {
      loss_exps = pack.rows > 1 ? take_row<T>(arena, classes) : pack.chunks;
    }
    masses = take<T>(arena, pack.rows * pack.stride);
    double** const numbers[] = {&q_m, &q_tail, &distance};
    for (double** array : numbers) *array = take<double>(arena, kPackRows);
    m = take<size_t>(arena, kPackRows);
  }

  T* exps(size_t q) const { return pack.exps ? pack.row(q) : loss_exps; }
  T* scratch() const { return pack.chunks + kChunk<T>; }

  // The target of row r of a block, row q of its pack.
  DenseTarget<T> target(const Terms& t, const Block<T>& b, size_t r, size_t q) const {
    return {t, b, r, b.probabilities ? masses + q * pack.stride : masses};
  }
  void put(size_t q, const DenseSums<T>& s) const {
    pack.put(q, s.exps);
    q_m[q] = s.q_m;
    q_tail[q] = s.q_tail;
    distance[q] = s.distance;
    m[q] = s.m;
  }
  DenseSums<T> get(size_t q) const {
    return {pack.template get<double>(q), m[q], q_m[q], q_tail[q], distance[q]};
  }
};

// The first pass over a chunk: its exps and a vector whose largest lane is its maximum.
template <class T>
__attribute__((noinline)) Vec<T> first_pass(const T* x, size_t n, const DirectExp<T, false>& exp_of,
                                            T* e) {
  const DirectExp<T, false> exp = exp_of;  // a copy, which no store can alias
  struct {
    struct {
      XENTROPY_INLINE_MEMBER void add(Vec<T>) {}
    } at[kLine<T> / kLanes<T>];
  } no_sums;
  return exps_and_maximum<true>(x, n, exp, e, no_sums);
}

// The second pass over a row: its sums, from its exps in e, of which that of m becomes 0.
template <class T>
__attribute__((noinline)) DenseSums<T> second_pass(const Terms& t, const T* x, const T* q, T peak,
                                                   T* e, T* chunk) {
  const size_t m = find(x, t.classes, peak);
  const double e_m = double(e[m]);
  e[m] = 0;
  const Masses<T> masses(q, t.classes, m, chunk);
  MassAccumulator<T> sums;
  Total<T> tail;
  for_chunks<T>(0, t.classes, [&](size_t i, size_t n) XENTROPY_INLINE_LAMBDA {
    sum_chunk(e + i, n, tail);
    sums.chunk(x + i, masses.chunk(i), n, peak);
  });
  return {dense_row_sums(tail, e_m, peak, t.logit_scale), m, masses.of_m, sums.total(),
          sums.distance()};
}

// Whether the sums of a row are taken in a second pass. With another logit_scale, which is rare,
// they are not: it would need an instance of its own of the first pass.
template <class T>
XENTROPY_INLINE bool in_two_passes(const Terms& t) {
  return pack_rows<T>(t.classes) > 1 && t.logit_scale == 1;
}

// Both passes over row q of a pack. exps_at(i, n) returns where the exps of the n classes from i on
// go, in that row.
template <class T, class ExpsAt>
XENTROPY_INLINE DenseSums<T> sums_in_two_passes(const Terms& t, const T* x, size_t q,
                                                const DenseTarget<T>& target,
                                                const DenseWorkspace<T>& w, const ExpsAt& exps_at) {
  const DirectExp<T, false> exp = guessed_exp(x, t.classes);
  Vec<T> most = splat(T(-INFINITY));
  for_chunks<T>(0, t.classes, [&](size_t i, size_t n) XENTROPY_INLINE_LAMBDA {
    T* e = exps_at(i, n);
    target.prefetch(i, n);
    most = max(most, first_pass(x + i, n, exp, e));
  });
  target.make_row();
  LabelMass<T> label = target.label_mass_in_row();
  label.swap();
  const DenseSums<T> sums =
      second_pass(t, x, target.row(), max_lanes<T>(most), w.exps(q), w.scratch());
  label.swap();
  return sums;
}

// Loss and factors of a row that is settled alone. `found`: its sums, which may be out of range:
// the row is then computed again from its maximum. Null e: the loss only.
template <class T>
GradientFactors<T> settle_dense_alone(const Terms& t, const Block<T>& b, size_t r,
                                      DenseSums<T>* found, const DenseTarget<T>& target, T* e,
                                      T* chunks) {
  const T* x = b.logits + ptrdiff_t(r) * b.logits_stride;
  LabelMass<T> label = target.label_mass_in_row();
  label.swap();
  const double mass = found->q_m + found->q_tail, distance = found->distance;
  const RowSums& exps = found->exps;
  const bool finite = mass - mass == 0 && distance - distance == 0;
  if (!finite || !sums_in_range<T>(exps.tail_sum, exps.e_target)) {
    const Peak<T> peak = peak_of(x, t.classes);
    const Masses<T> masses(target.row(), t.classes, peak.at, chunks + kChunk<T>);
    *found = dense_sums_from_maximum(t, x, masses, peak, e, chunks);
  }
  const GradientFactors<T> f = settle_dense_row(t, b, r, *found, target.row(), e);
  label.swap();
  return f;
}

// The same in vectors, for the rows q, q + 1, ... of a pack of n, of which row `first` of the block
// is row 0.
template <class T>
void settle_dense_lanes(const Terms& t, const Block<T>& b, size_t first, size_t q, size_t n,
                        const DenseWorkspace<T>& w, PackResults<T>* to) {
  const RowSumsOf<VD> s = w.pack.template get<VD>(q);
  const RowFactors row = row_factors(b, first, q, n);
  const VD q_m = load(w.q_m + q), q_tail = load(w.q_tail + q), distance = load(w.distance + q);
  const SettledOf<VD> settled =
      settle_dense<VD>(t, q_m, q_tail, distance, row.sample_weight, row.upstream, logs_of_odds(s),
                       s.tail_sum, s.e_target, s.origin);
  const FactorsOf<VD> f = factors_of<T>(t, settled, s, true, true);
  const VD mass = q_m + q_tail;
  put_settled<T>(settled, s, f, (mass - mass == 0) & (distance - distance == 0), q, to);
}

template <class T>
void settle_dense_pack(const Terms& t, const Block<T>& b, size_t first, size_t n,
                       const DenseWorkspace<T>& w) {
  settle_rows(
      b, first, n, w.pack,
      [&](size_t q, PackResults<T>* of) { settle_dense_lanes(t, b, first, q, n, w, of); },
      [&](size_t q) { return w.m[q]; },
      [&](size_t q) {
        DenseSums<T> sums = w.get(q);
        const DenseTarget<T> target = w.target(t, b, first + q, q);
        const GradientFactors<T> f = settle_dense_alone(
            t, b, first + q, &sums, target, w.pack.exps ? w.pack.row(q) : nullptr, w.pack.chunks);
        w.m[q] = sums.m;
        return f;
      });
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
