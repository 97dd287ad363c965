// The terms of divergences between the softmaxes S (of the student) and T (of the teacher), from
// d = log(T / S) and u of common/log_ratio.h. M = (1 - beta) S + beta T, m is S's most probable
// class, and phi(z) = exp(-z) - 1 + z:
//
//     beta = 0    sum T log(T/S) = sum T phi(d)
//     beta = 1    sum S log(S/T) = sum S phi(-d)
//     between     beta sum T log(T/M) + (1 - beta) sum S log(S/M)
//                 = sum beta T phi(log T/M) + (1 - beta) S phi(log S/M)
//
// because S, T and M add up to 1: no term is negative. Where |z| < 1, phi(z) = z^2 r(-z) with the
// series r below, so that nothing cancels; elsewhere it is what it says. The gradient in the scaled
// logits of S is a_c - b_c (sum a / sum b), which adds up to 0 as it must:
//
//     beta = 0    a = S - T = T (exp(-d) - 1),  b = T
//     beta = 1    a = -S u,                     b = S
//     between     a = -S w,                     b = S, all times 1 - beta
//
// with w = log(S_m/M_m) - log(S/M) = log1p(k (exp(u) - 1)), k = beta T_m / M_m. u and w are 0 at m,
// so the gradient of an almost certain row keeps its digits. Errors of d that all classes share,
// those of the two log-sum-exps, cancel in a - b (sum a / sum b), and to first order in the loss.
#pragma once
#include "common/log1p.h"
#include "common/log_ratio.h"

namespace xentropy {
namespace XENTROPY_TIER {

// r(x) = (exp(x) - 1 - x) / x^2 for |x| < 1, interpolated at Chebyshev nodes: relative errors
// 2^-25.8 and 2^-54.8, rounded coefficients included.
template <class T>
struct ExpRemainder;
template <>
struct ExpRemainder<float> {
  static constexpr float kPolynomial[] = {
      0x1.78a70ep-19f, 0x1.a971fcp-16f, 0x1.a009p-13f,  0x1.6bff52p-10f,
      0x1.11111ep-7f,  0x1.55557ap-5f,  0x1.555556p-3f, 0.5f};
};
template <>
struct ExpRemainder<double> {
  static constexpr double kPolynomial[] = {0x1.b41232cf9950fp-41, 0x1.99848a67700e4p-37,
                                           0x1.611cb330c1fe8p-33, 0x1.1ee5640e638a2p-29,
                                           0x1.ae6460fae3728p-26, 0x1.27e5069de9344p-22,
                                           0x1.71de3a4e14f40p-19, 0x1.a01a01907b7eep-16,
                                           0x1.a01a01a01ee70p-13, 0x1.6c16c16c212c0p-10,
                                           0x1.11111111110fdp-7,  0x1.5555555555502p-5,
                                           0x1.5555555555555p-3,  0.5};
};

// Of n vectors, step by step as in common/exp.h.
template <class T, size_t n>
XENTROPY_INLINE void exp_remainders(const Vec<T> (&x)[n], Vec<T> (&p)[n]) {
  typedef ExpRemainder<T> R;
  for (size_t q = 0; q < n; ++q) p[q] = splat(R::kPolynomial[0]);
  for (size_t i = 1; i < sizeof(R::kPolynomial) / sizeof(T); ++i) {
    for (size_t q = 0; q < n; ++q) p[q] = fma(p[q], x[q], splat(R::kPolynomial[i]));
  }
}
template <class T>
XENTROPY_INLINE Vec<T> exp_remainder(Vec<T> x) {
  const Vec<T> all[] = {x};
  Vec<T> p[1];
  exp_remainders<T>(all, p);
  return p[0];
}

template <class T>
XENTROPY_INLINE Vec<T> magnitude_of(Vec<T> x) {
  constexpr int kBits = sizeof(T) * 8 - 1;
  return (Vec<T>)((IntVec<T>)x & ~((IntVec<T>{} + 1) << kBits));
}

// What n vectors of classes add to the sums.
template <class T, size_t n>
struct DivergenceTerms {
  Vec<T> loss[n], a[n], moved[n];  // moved: T - S

  template <size_t k>
  XENTROPY_INLINE_MEMBER void set(size_t q, const DivergenceTerms<T, k>& part, size_t i) {
    loss[q] = part.loss[i];
    a[q] = part.a[i];
    moved[q] = part.moved[i];
  }
};

// P phi(e) and Q - P, with e = log(P / Q): phi(e) = exp(-e) - 1 + e.
template <class T, size_t n>
XENTROPY_INLINE void relative_terms(const Vec<T> (&P)[n], const Vec<T> (&Q)[n],
                                    const Vec<T> (&e)[n], Vec<T> (&loss)[n], Vec<T> (&moved)[n]) {
  const Vec<T> one = splat(T(1));
  Vec<T> minus_e[n], square[n];
  for (size_t q = 0; q < n; ++q) minus_e[q] = -e[q];
  exp_remainders<T>(minus_e, square);
  for (size_t q = 0; q < n; ++q) square[q] *= e[q] * e[q];
  for (size_t q = 0; q < n; ++q) {
    const auto near = magnitude_of<T>(e[q]) < one;
    const Vec<T> small = P[q] * square[q], far = Q[q] - P[q];
    loss[q] = near ? small : fma(P[q], e[q], far);
    moved[q] = near ? fma(P[q], minus_e[q], small) : far;
  }
}

// Functors from S, T and their ratios to these terms; kKeepsOwn: b is S, not T. Where it is not,
// `a` is what has moved.
template <class T>
struct ForwardTerms {
  static constexpr bool kKeepsOwn = false;
  static constexpr size_t kTogether = 2;  // vectors
  template <size_t n>
  XENTROPY_INLINE_MEMBER void operator()(const Vec<T> (&S)[n], const Vec<T> (&P)[n],
                                         const LogRatio<T> (&r)[n],
                                         DivergenceTerms<T, n>& t) const {
    Vec<T> ratio[n];
    for (size_t q = 0; q < n; ++q) ratio[q] = r[q].d;
    relative_terms<T>(P, S, ratio, t.loss, t.a);  // a is S - T
  }
};

template <class T>
struct ReverseTerms {
  static constexpr bool kKeepsOwn = true;
  static constexpr size_t kTogether = 2;
  template <size_t n>
  XENTROPY_INLINE_MEMBER void operator()(const Vec<T> (&S)[n], const Vec<T> (&P)[n],
                                         const LogRatio<T> (&r)[n],
                                         DivergenceTerms<T, n>& t) const {
    Vec<T> ratio[n];
    for (size_t q = 0; q < n; ++q) ratio[q] = -r[q].d;
    relative_terms<T>(S, P, ratio, t.loss, t.moved);
    for (size_t q = 0; q < n; ++q) t.a[q] = -(S[q] * r[q].u);
  }
};

// 1 - exp(-x) for 0 <= x < 1.
template <class T, size_t n>
XENTROPY_INLINE void decays(const Vec<T> (&x)[n], Vec<T> (&lost)[n]) {
  Vec<T> minus[n];
  for (size_t q = 0; q < n; ++q) minus[q] = -x[q];
  exp_remainders<T>(minus, lost);
  for (size_t q = 0; q < n; ++q) lost[q] = fma(x[q] * minus[q], lost[q], x[q]);
}

XENTROPY_INLINE bool is_between(double beta) { return beta != 0 && beta != 1; }

// Numbers of a row from the probabilities S and P of class m in both. D is double, or a vector of
// doubles with one row per lane.
template <class D>
struct MixtureOf {
  D k, not_k;                  // the parts of T and S in M
  D per_ratio, log_per_ratio;  // k exp(u) = per_ratio T / S = exp(d + log_per_ratio)
};
template <class D>
XENTROPY_INLINE MixtureOf<D> mixture_of(double beta, double log_beta, D S, D P) {
  const D of_t = beta * P, of_s = (1 - beta) * S, mixed = of_t + of_s;
  const auto less = P < S;
  const D size = log1p_of((less ? beta * (S - P) : beta * (P - S)) / (less ? mixed : S));
  return {of_t / mixed, of_s / mixed, beta * S / mixed, log_beta - (less ? -size : size)};
}

// 0 < beta < 1. Ratios of S and T are quotients where they are far from 1: exp(d) would lose digits
// where d is large.
template <class T>
class BetweenTerms {
 public:
  static constexpr bool kKeepsOwn = true;
  static constexpr size_t kTogether = 2;

  BetweenTerms(double beta, const MixtureOf<Vec<T>>& of_m)
      : beta_(splat(T(beta) > kLeast ? T(beta) : kLeast)),  // 1 / beta is finite
        not_beta_(splat(T(1 - beta))),
        of_m_(of_m) {}

  // Chains of operations are long: those of the loss and of w go side by side.
  template <size_t n>
  XENTROPY_INLINE_MEMBER void operator()(const Vec<T> (&S)[n], const Vec<T> (&P)[n],
                                         const LogRatio<T> (&r)[n],
                                         DivergenceTerms<T, n>& t) const {
    Vec<T> sizes[2 * n], lost[2 * n], odds[3 * n], logs[3 * n];
    for (size_t q = 0; q < n; ++q) sizes[q] = magnitude_of<T>(r[q].d);
    for (size_t q = 0; q < n; ++q) sizes[n + q] = magnitude_of<T>(r[q].u);
    decays<T>(sizes, lost);
    Mixed of[n];
    for (size_t q = 0; q < n; ++q) {
      of[q] = mixed(S[q], P[q], r[q].d, sizes[q], lost[q]);
      odds[q] = of[q].rest * of[q].lost / of[q].mean;
      odds[2 * n + q] = of[q].weight * of[q].lost / max(splat(kLeast), of[q].left);
      odds[n + q] = odds_of_w(of[q], r[q], sizes[n + q], lost[n + q]);
      const Vec<T> moved = of[q].more * of[q].lost;
      t.moved[q] = r[q].d < T(0) ? -moved : moved;
    }
    log1p_vectors(odds, logs);
    for (size_t q = 0; q < n; ++q) {
      const Vec<T> w = r[q].u < T(0) ? -logs[n + q] : logs[n + q],
                   far = r[q].d + of_m_.log_per_ratio;
      t.a[q] = -(S[q] * (far > kFar ? far : w));
    }
    losses(of, sizes, logs, t.loss);
  }

 private:
  static constexpr T kLeast = sizeof(T) == 4 ? T(0x1p-126) : T(0x1p-1000);
  static constexpr T kFar = sizeof(T) == 4 ? 20 : 40;  // exp(-kFar) is nothing beside 1

  // The larger one of S and T, the other one by it, and that taken from 1. weight, rest: of the
  // two in M. mean: M by the larger one.
  struct Mixed {
    Vec<T> more, left, lost, weight, rest, mean;
  };
  XENTROPY_INLINE_MEMBER Mixed mixed(Vec<T> S, Vec<T> P, Vec<T> d, Vec<T> size, Vec<T> lost) const {
    const Vec<T> one = splat(T(1));
    const auto above = d >= T(0), near = size < one;
    Mixed m;
    m.more = above ? P : S;
    const Vec<T> quotient = (above ? S : P) / max(splat(kLeast), m.more);
    m.lost = near ? lost : one - quotient;
    m.left = near ? one - lost : quotient;
    m.weight = above ? beta_ : not_beta_;
    m.rest = above ? not_beta_ : beta_;
    m.mean = fma(m.rest, m.left, m.weight);
    return m;
  }

  // exp(|w|) - 1. size, lost: of u.
  XENTROPY_INLINE_MEMBER Vec<T> odds_of_w(const Mixed& m, LogRatio<T> r, Vec<T> size,
                                          Vec<T> lost) const {
    const Vec<T> zero = {}, one = splat(T(1));
    const auto above = r.d >= T(0), below = r.u < zero, near = size < one;
    const Vec<T> P = above ? one : m.left, S = above ? m.left : one;  // by the larger one
    const Vec<T> k = of_m_.k * S, k_exp_u = of_m_.per_ratio * P;      // both times S
    const Vec<T> far = max(zero, below ? k - k_exp_u : k_exp_u - k);
    const Vec<T> of_k = of_m_.k * lost, least = max(splat(kLeast * T(0x1p26)), S);
    const Vec<T> lower =
        below ? (near ? one - of_k : fma(of_m_.not_k, S, k_exp_u)) : (near ? one - lost : least);
    return (near ? of_k : far) / lower;
  }

  // logs: first log(more / M), last log(M / less).
  template <size_t n>
  XENTROPY_INLINE_MEMBER void losses(const Mixed (&of)[n], const Vec<T> (&sizes)[2 * n],
                                     const Vec<T> (&logs)[3 * n], Vec<T> (&loss)[n]) const {
    Vec<T> both[2 * n], series[2 * n];
    for (size_t q = 0; q < n; ++q) both[q] = -logs[q];
    for (size_t q = 0; q < n; ++q) {
      both[n + q] = of[q].left > kLeast ? logs[2 * n + q] : sizes[q] - logs[q];
    }
    exp_remainders<T>(both, series);
    for (size_t q = 0; q < 2 * n; ++q) series[q] *= both[q] * both[q];
    for (size_t q = 0; q < n; ++q) {
      const Vec<T> rest = of[q].rest * of[q].left;
      const auto near = sizes[q] < T(1);
      const Vec<T> small = fma(of[q].weight, series[q], rest * series[n + q]);
      const Vec<T> far = fma(of[q].weight, logs[q], -(rest * both[n + q]));
      loss[q] = of[q].more * (near ? small : far);
    }
  }

  Vec<T> beta_, not_beta_;
  MixtureOf<Vec<T>> of_m_;
};

}  // namespace XENTROPY_TIER
}  // namespace xentropy
