// The pass over two softmaxes in which everything that a divergence consists of is computed: u and
// d, the terms of the loss, and those of the gradient in the place of the exps. Over the classes of
// a row, or of kLanes<T> rows, which are columns then.
#pragma once
#include "common/divergence.h"

namespace xentropy {
namespace XENTROPY_TIER {

// Logits, exps, and 1 / their totals.
template <class T>
struct SoftmaxPair {
  const T *x, *y;
  T *s, *t;
  Vec<T> of_s, of_t;
  size_t stride;  // from a vector to the next that is added to it: kLine<T>; kLanes<T> of columns
};

// The sums over classes, in as many lanes as a row has sums; those of columns are in the first.
template <class T>
struct LaneDivergence {
  LaneTotal<T> loss[kLine<T> / kLanes<T>], a[kLine<T> / kLanes<T>], moved[kLine<T> / kLanes<T>];
};

// b replaces the exps of S or T that it is made of, and a the others. One instance serves rows and
// columns, whose strides are the same where a vector is a line.
template <class T, class Ratios, class Terms>
class DivergencePass {
  static constexpr size_t L = kLanes<T>;
  static constexpr size_t n = kVectorBytes < 64 ? 1 : Terms::kTogether;  // vectors: registers

 public:
  DivergencePass(const SoftmaxPair<T>& of, const Ratios& ratios, const Terms& terms)
      : of_(of), ratios_(ratios), terms_(terms) {}

  // Of all `elements`.
  LaneDivergence<T> sums(size_t elements) const {
    LaneDivergence<T> all;
    const size_t K = stride();
    const size_t end = elements / (4 * K) * (4 * K);
    for (size_t v = 0; v < K && end > 0; v += L) lanes(v, end, all);
    for (size_t c = end; c < elements; c += L) one(c, elements - c < L ? elements - c : L, all);
    for (size_t v = 0; !Terms::kKeepsOwn && v < K / L; ++v) all.moved[v] = all.a[v];
    return all;
  }

 private:
  // A constant where it can be one.
  XENTROPY_INLINE_MEMBER size_t stride() const { return L == kLine<T> ? L : of_.stride; }

  // The vectors at v, v + K, ... below `end`, n at a time, which are added in fours. The ratios of
  // the next n are computed beside the terms of these: most operations of the former are additions,
  // of the latter multiplications.
  XENTROPY_INLINE_MEMBER void lanes(size_t v, size_t end, LaneDivergence<T>& all) const {
    const size_t K = stride();
    const DivergencePass p = *this;  // in registers: what is stored cannot change it
    LaneTotal<T> loss, a, moved;
    LogRatio<T> next[n];
    p.ratios_at(v, next);
    for (size_t c = v; c < end; c += 4 * K) {
      DivergenceTerms<T, 4> four;
      for (size_t q = 0; q < 4; q += n) {
        LogRatio<T> ratio[n];
        for (size_t i = 0; i < n; ++i) ratio[i] = next[i];
        const size_t at = c + q * K, after = at + n * K;
        p.ratios_at(after < end ? after : v, next);
        DivergenceTerms<T, n> part;
        p.terms_at(at, ratio, part);
        for (size_t i = 0; i < n; ++i) four.set(q + i, part, i);
      }
      loss.add((four.loss[0] + four.loss[1]) + (four.loss[2] + four.loss[3]));
      a.add((four.a[0] + four.a[1]) + (four.a[2] + four.a[3]));
      if (!Terms::kKeepsOwn) continue;
      moved.add((four.moved[0] + four.moved[1]) + (four.moved[2] + four.moved[3]));
    }
    all.loss[v / L] = loss;
    all.a[v / L] = a;
    all.moved[v / L] = moved;
  }

  XENTROPY_INLINE_MEMBER void ratios_at(size_t c, LogRatio<T> (&ratio)[n]) const {
    const size_t K = stride();
    Vec<T> x[n], y[n];
    for (size_t q = 0; q < n; ++q) x[q] = load(of_.x + c + q * K);
    for (size_t q = 0; q < n; ++q) y[q] = load(of_.y + c + q * K);
    ratios_(x, y, ratio);
  }
  XENTROPY_INLINE_MEMBER void terms_at(size_t c, const LogRatio<T> (&ratio)[n],
                                       DivergenceTerms<T, n>& part) const {
    const size_t K = stride();
    Vec<T> S[n], P[n];
    for (size_t q = 0; q < n; ++q) S[q] = load(of_.s + c + q * K) * of_.of_s;
    for (size_t q = 0; q < n; ++q) P[q] = load(of_.t + c + q * K) * of_.of_t;
    terms_(S, P, ratio, part);
    for (size_t q = 0; q < n; ++q) put(c + q * K, S[q], P[q], part.a[q]);
  }
  XENTROPY_INLINE_MEMBER void put(size_t c, Vec<T> S, Vec<T> P, Vec<T> a) const {
    store((Terms::kKeepsOwn ? of_.t : of_.s) + c, a);
    store((Terms::kKeepsOwn ? of_.s : of_.t) + c, Terms::kKeepsOwn ? S : P);
  }

  // The vector at c, of which `lanes` are classes.
  XENTROPY_INLINE_MEMBER void one(size_t c, size_t lanes, LaneDivergence<T>& all) const {
    const auto from = [&](const T* p) XENTROPY_INLINE_LAMBDA {
      return lanes == L ? load(p + c) : load_first(p + c, lanes, Vec<T>{});
    };
    const Vec<T> x[] = {from(of_.x)}, y[] = {from(of_.y)}, S[] = {from(of_.s) * of_.of_s},
                 P[] = {from(of_.t) * of_.of_t};
    LogRatio<T> ratio[1];
    DivergenceTerms<T, 1> part;
    ratios_(x, y, ratio);
    terms_(S, P, ratio, part);
    put(c, S[0], P[0], part.a[0]);
    const size_t at = (c & (stride() - 1)) / L;  // a power of two
    all.loss[at].add(part.loss[0]);
    all.a[at].add(part.a[0]);
    if (Terms::kKeepsOwn) all.moved[at].add(part.moved[0]);
  }

  SoftmaxPair<T> of_;
  Ratios ratios_;
  Terms terms_;
};

template <class T, class Ratios, class Terms>
XENTROPY_INLINE LaneDivergence<T> sums_of_terms(const SoftmaxPair<T>& pair, size_t elements,
                                                const Ratios& ratios, const Terms& terms) {
  return DivergencePass<T, Ratios, Terms>(pair, ratios, terms).sums(elements);
}

// of_m: mixture_of, for betas between.
template <class T, class Ratios>
LaneDivergence<T> divergence_sums(double beta, const SoftmaxPair<T>& pair, size_t elements,
                                  const Ratios& ratios, const MixtureOf<Vec<T>>& of_m) {
  if (beta == 0) return sums_of_terms(pair, elements, ratios, ForwardTerms<T>());
  if (beta == 1) return sums_of_terms(pair, elements, ratios, ReverseTerms<T>());
  return sums_of_terms(pair, elements, ratios, BetweenTerms<T>(beta, of_m));
}

// The sums of a row, or of a vector of rows.
template <class D>
struct DivergenceSums {
  D loss, a, moved;
};

// The loss from its terms, in which d has an error that all classes share: `moved` is its
// exponential less 1. What it adds is of second order.
template <class D>
XENTROPY_INLINE D settled_loss(double beta, const DivergenceSums<D>& sums) {
  const double curvature = is_between(beta) ? beta * (1 - beta) : 1;
  const D loss = sums.loss - curvature * sums.moved * sums.moved / 2, zero = {};
  return loss < zero ? zero : loss;
}

// The gradient is a * (factor + rest) - b * bias; factor is rounded to T.
template <class D>
struct DivergenceFactors {
  D factor, rest, bias;
};
template <class T, class D>
XENTROPY_INLINE DivergenceFactors<D> divergence_factors(double beta, const DivergenceSums<D>& sums,
                                                        D factor) {
  const double of_beta = beta == 1 ? 1 : 1 - beta;
  factor *= beta == 0 ? 1.0 / (1.0 + sums.a) : D{} + of_beta;
  const D head = rounded<T>(factor);
  return {head, factor - head, factor * sums.a};
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
