// The divergence of two softmaxes and its gradient for short adjacent rows, a row a lane: student
// and teacher are transposed (groups/transposed.h), and every sum over classes is vertical. For a
// batch of rows, as many as stay in the L1 cache:
//
//   1. class by class the maxima of both, and the teacher's logit where the student's is; exps, and
//      their sums without that of the maximum;
//   2. in float64 what log-ratios and terms need of a row;
//   3. the pass of common/divergence_pass.h, whose sums are rows;
//   4. in float64 losses, and the factors of the gradient;
//   5. the gradient, class by class; transposed back; to memory.
//
// Rows that are not ordinary, or whose exps are out of range, are computed one by one.
//
// Cost: per vector of one class three transpositions, two exps, and the pass; per VD of rows two
// logarithms and four divisions. Without a transposition every sum of a row would take a tree of
// shuffles, and all of its numbers a permutation wherever they are needed.
//
// Lanes are independent: no bit of a row depends on its neighbours.
#pragma once
#include "common/distillation_row.h"
#include "common/lanes.h"
#include "groups/transposed.h"

namespace xentropy {
namespace XENTROPY_TIER {

// The largest logit of each lane, and its first class. One visitor for both distributions.
template <class T>
struct LanePeak {
  Vec<T> peak = splat(T(-INFINITY)), wanted = {}, sum = {};  // wanted: the logit of class m
  IntVec<T> own = {}, at = {}, m = {};                       // sum: as in peaks_of

  XENTROPY_INLINE_MEMBER void take_class(Vec<T> x) {
    at = x > peak ? own : at;
    wanted = own == m ? x : wanted;
    peak = max(x, peak);
    sum = fma(x, splat(T(0x1p28)), sum);
    own += 1;
  }
};

// As SoftmaxRow.
template <class T>
struct LaneSoftmax {
  Vec<T> largest, wanted;  // exps
  LaneTotal<T> others;     // without the largest one
};

// kLanes<T> rows between the steps; arrays are stored by halves.
template <class T>
struct DistilledLanes {
  static constexpr size_t L = kLanes<T>;
  LaneSoftmax<T> own, other;
  Vec<T> x_m, y_m, y_peak;  // logits; m: the student's most probable class
  Vec<T> at, at_rest;       // as in RatioOrigin
  Vec<T> sum;               // finite if all logits are ordinary
  LaneDivergence<T> sums;
  T of_s[L], of_t[L], from[L], rest[L], k[L], not_k[L], per_ratio[L], log_per_ratio[L];
  T factor[L], factor_rest[L], bias[L];
  LaneInt<double> fine[L];
};

template <class T>
struct DistillationGroups {
  size_t rows;       // of a batch, a multiple of kLanes<T>
  T *x, *y, *s, *t;  // columns: the logits of student and teacher, their exps
  DistilledLanes<T>* lanes;
  T *copy, *staged;  // kLanes<T> rows
  DistillationWorkspace<T> row;

  DistillationGroups(size_t classes, Arena& arena)
      : rows(batch_rows<T>(4 * classes)), row(classes, arena) {
    constexpr size_t L = kLanes<T>;
    T** const columns[] = {&x, &y, &s, &t};
    for (T** array : columns) *array = take<T>(arena, rows * classes + L * L);
    lanes = take<DistilledLanes<T>>(arena, rows / L);
    copy = take<T>(arena, (classes + 1) * L);
    staged = take<T>(arena, (classes + 1) * L);
  }
};

// The exps of kClasses classes from `first` on.
template <size_t kClasses, class T, class Exp>
XENTROPY_INLINE void add_exps(const T* columns, const Exp& exp, Vec<T> anchor, size_t first,
                              IntVec<T> at, T* to, LaneTotal<T>* others) {
  Vec<T> x[kClasses], e[kClasses];
  for (size_t q = 0; q < kClasses; ++q) x[q] = exp.clamp(load(columns + q * kLanes<T>));
  exp.of_clamped(x, anchor, e);
  for (size_t q = 0; q < kClasses; ++q) {
    store(to + q * kLanes<T>, e[q]);
    e[q] = at == LaneInt<T>(first + q) ? Vec<T>{} : e[q];
  }
  others->add(sum_of_few(e));
}

template <bool kScaled, class T>
LaneSoftmax<T> exps_of_lanes(const T* columns, size_t classes, double scale, const LanePeak<T>& of,
                             T* e) {
  constexpr size_t L = kLanes<T>;
  const AnchoredExp<T, kScaled> exp(scale);
  const Vec<T> anchor = Anchors<T>(scale)(of.peak);
  const IntVec<T> at = of.at;
  LaneTotal<T> others;
  size_t c = 0;
  for (; c + 4 <= classes; c += 4) {
    add_exps<4>(columns + c * L, exp, anchor, c, at, e + c * L, &others);
  }
  for (; c < classes; ++c) add_exps<1>(columns + c * L, exp, anchor, c, at, e + c * L, &others);
  return {exp(of.peak, anchor), exp(of.wanted, anchor), others};
}

// Step 1 for the rows at r, of one distribution: their logits and exps as columns.
template <class T>
LaneSoftmax<T> softmax_of_lanes(const PaddedRows<T>& rows, size_t r, double scale, T* columns,
                                T* exps, LanePeak<T>* peak) {
  const size_t C = rows.classes;
  columns_of_rows(rows.from(r), C, rows.x + r * C + kGroupElements, columns, peak);
  return scale == 1 ? exps_of_lanes<false>(columns, C, scale, *peak, exps)
                    : exps_of_lanes<true>(columns, C, scale, *peak, exps);
}

// Step 1 for the vector of rows at i of the batch.
template <class T>
void softmaxes_of_lanes(const DistillationBlock<T>& b, size_t first, size_t i,
                        const DistillationGroups<T>& g) {
  const size_t C = b.classes;
  DistilledLanes<T>& to = g.lanes[i / kLanes<T>];
  LanePeak<T> own, other;
  to.own = softmax_of_lanes<T>({b.x, b.rows, C, b.labels, g.copy}, first + i, b.logit_scale,
                               g.x + i * C, g.s + i * C, &own);
  other.m = own.at;
  to.other = softmax_of_lanes<T>({b.teacher, b.rows, C, b.labels, g.copy}, first + i,
                                 b.teacher_scale, g.y + i * C, g.t + i * C, &other);
  to.x_m = own.peak;
  to.y_m = other.wanted;
  to.y_peak = other.peak;
  to.sum = own.sum + other.sum;
  with_ratios<T>(b.logit_scale, b.teacher_scale, RatioOrigin<Vec<T>>(), [&](const auto& ratios) {
    const Vec<T> x[] = {to.x_m}, y[] = {to.y_m};
    Vec<T> head[1], lost[1];
    ratios.differences(x, y, head, lost);
    to.at = head[0];
    to.at_rest = lost[0];
  });
}

// Step 2 for the rows [q, q + kLanes<double>) of a vector.
template <class T>
void number_lanes(const DistillationBlock<T>& b, const int64_t* labels, size_t q,
                  DistilledLanes<T>& to) {
  const size_t h = q / kLanes<double>;
  const double s_scale = b.logit_scale, t_scale = b.teacher_scale;
  const VD others = half_of(to.own.others, h), largest = half_of(to.own.largest, h);
  const VD t_others = half_of(to.other.others, h), t_largest = half_of(to.other.largest, h);
  const VD of_s = 1.0 / (others + largest), of_t = 1.0 / (t_others + t_largest);
  const VD above = log1p_of(others / largest) - log1p_of(t_others / t_largest);
  const SumOf<VD> d = log_ratio_of(exact_product(half_of(to.y_m, h), splat(t_scale)),
                                   exact_product(half_of(to.y_peak, h), splat(t_scale)), above);
  const VD head = rounded<T>(d.value), sum = half_of(to.sum, h);
  const auto origin = finite_origin<T, VD>({half_of(to.at, h), half_of(to.at_rest, h)},
                                           {head, (d.value - head) + d.lost},
                                           s_scale > t_scale ? s_scale : t_scale);
  store_narrow(to.of_s + q, of_s);
  store_narrow(to.of_t + q, of_t);
  store_narrow(to.from + q, origin.from);
  store_narrow(to.rest + q, origin.rest);
  if (is_between(b.beta)) {
    const auto of_m =
        mixture_of<VD>(b.beta, b.log_beta, largest * of_s, half_of(to.other.wanted, h) * of_t);
    store_narrow(to.k + q, of_m.k);
    store_narrow(to.not_k + q, of_m.not_k);
    store_narrow(to.per_ratio + q, of_m.per_ratio);
    store_narrow(to.log_per_ratio + q, of_m.log_per_ratio);
  }
  const auto in_range = sums_in_range<T>(others, largest) & sums_in_range<T>(t_others, t_largest);
  const auto ordinary = sum - sum == 0;
  store_integers<double>(to.fine + q, (IntVec<double>)(in_range & ordinary & origin.serves) &
                                          (load_integers<double>(labels + q) >= 0));
}

// Step 3.
template <class T>
void diverge_lanes(const DistillationBlock<T>& b, size_t i, const DistillationGroups<T>& g) {
  const size_t C = b.classes, at = i * C;
  DistilledLanes<T>& l = g.lanes[i / kLanes<T>];
  const SoftmaxPair<T> pair = {g.x + at,     g.y + at,     g.s + at, g.t + at,
                               load(l.of_s), load(l.of_t), kLanes<T>};
  const MixtureOf<Vec<T>> of_m = {load(l.k), load(l.not_k), load(l.per_ratio),
                                  load(l.log_per_ratio)};
  with_ratios<T>(b.logit_scale, b.teacher_scale, {l.at, l.at_rest, load(l.from), load(l.rest)},
                 [&](const auto& ratios) {
                   l.sums = divergence_sums(b.beta, pair, C * kLanes<T>, ratios, of_m);
                 });
}

// Step 4 for the rows [q, q + kLanes<double>) of a vector; r is the first of them.
template <class T>
void settle_lanes(const DistillationBlock<T>& b, size_t r, size_t q, DistilledLanes<T>& l) {
  const size_t h = q / kLanes<double>;
  const DivergenceSums<VD> sums = {half_of(l.sums.loss[0], h), half_of(l.sums.a[0], h),
                                   half_of(l.sums.moved[0], h)};
  store(b.loss + r, settled_loss(b.beta, sums));
  if (!b.gradient) return;
  const auto f = divergence_factors<T, VD>(b.beta, sums, load(b.factor + r) * b.logit_scale);
  store_narrow(l.factor + q, f.factor);
  store_narrow(l.factor_rest + q, f.rest);
  store_narrow(l.bias + q, f.bias);
}

// Steps 1 to 4 for the n rows from `first` on. Each is done for the whole batch, so that no vector
// waits for what was just stored by halves, and logarithms overlap.
template <class T>
void diverge_batch(const DistillationBlock<T>& b, size_t first, size_t n,
                   const DistillationGroups<T>& g) {
  constexpr size_t L = kLanes<T>, D = kLanes<double>;
  for (size_t i = 0; i < n; i += L) softmaxes_of_lanes(b, first, i, g);
  for (size_t i = 0; i < n; i += D) {
    number_lanes(b, b.labels + first + i / L * L, i % L, g.lanes[i / L]);
  }
  for (size_t i = 0; i < n; i += L) diverge_lanes(b, i, g);
  for (size_t i = 0; i < n; i += D) settle_lanes(b, first + i, i % L, g.lanes[i / L]);
}

// Step 5 for a vector of rows, into g.staged.
template <class T>
void gradient_of_lanes(const DistillationBlock<T>& b, size_t i, const DistillationGroups<T>& g) {
  constexpr size_t L = kLanes<T>;
  const size_t C = b.classes;
  const DistilledLanes<T>& l = g.lanes[i / L];
  T *a = (b.beta == 0 ? g.s : g.t) + i * C, *w = (b.beta == 0 ? g.t : g.s) + i * C;
  const GradientMap<T> finish(load(l.factor), load(l.factor_rest), Vec<T>{});
  const Vec<T> minus_bias = -load(l.bias);
  for (size_t c = 0; c < C * L; c += L) {
    store(a + c, fma(load(w + c), minus_bias, finish(load(a + c))));
  }
  rows_of_columns(a, C, g.staged);
}

// The rows of a vector, from r on, that are not fine.
template <class T>
void other_rows(const DistillationBlock<T>& b, size_t r, const DistilledLanes<T>& l,
                const DistillationGroups<T>& g) {
  for (size_t q = 0; q < kLanes<T> && r + q < b.rows; ++q) {
    if (l.fine[q]) continue;
    T* out = b.gradient ? g.staged + q * b.classes : nullptr;
    if (b.labels[r + q] == kIgnored) {
      ignore_row(b, r + q, out);
    } else {
      distillation_row(b, r + q, out, g.row, false);
    }
  }
}

template <class T>
size_t distillation_groups_bytes(size_t classes) {
  return bytes_of<DistillationGroups<T>>(classes);
}

template <class T>
void distillation_groups(const DistillationBlock<T>& b, char* workspace, bool streamed) {
  constexpr size_t L = kLanes<T>;
  Arena arena = {workspace, 0};
  const DistillationGroups<T> g(b.classes, arena);
  with_writer(b.gradient, streamed, [&](auto& writer) {
    for (size_t first = 0, n; first < b.rows; first += n) {
      n = b.rows - first < g.rows ? b.rows - first : g.rows;
      diverge_batch(b, first, n, g);
      for (size_t i = 0; i < n; i += L) {
        if (b.gradient) gradient_of_lanes(b, i, g);
        other_rows(b, first + i, g.lanes[i / L], g);
        if (b.gradient) writer.put(g.staged, (n - i < L ? n - i : L) * b.classes);
      }
    }
  });
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
