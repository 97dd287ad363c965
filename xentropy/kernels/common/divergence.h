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

// 1 / (n + 2)!
template <class T>
struct ExpSeries {
  static constexpr int kTerms = sizeof(T) == 4 ? 10 : 18;
  T at[kTerms] = {};
  constexpr ExpSeries() {
    double each = 1;
    for (int n = 0; n < kTerms; ++n) at[n] = T(each /= n + 2);
  }
};

// r(x) = (exp(x) - 1 - x) / x^2 for |x| < 1: the Taylor series, until a term is below 1/8 ulp.
template <class T>
XENTROPY_INLINE Vec<T> exp_remainder(Vec<T> x) {
  constexpr ExpSeries<T> series;
  Vec<T> p = splat(series.at[series.kTerms - 1]);
  for (int n = series.kTerms - 2; n >= 0; --n) p = fma(p, x, splat(series.at[n]));
  return p;
}

template <class T>
XENTROPY_INLINE Vec<T> magnitude_of(Vec<T> x) {
  return x < 0 ? -x : x;
}

// What a class adds to the sums.
template <class T>
struct DivergenceTerms {
  Vec<T> loss, a, moved = {};  // moved: T - S
};

// P phi(e) and Q - P, with e = log(P / Q).
template <class T>
XENTROPY_INLINE void relative_terms(Vec<T> P, Vec<T> Q, Vec<T> e, Vec<T>* loss, Vec<T>* moved) {
  const Vec<T> square = e * e * exp_remainder<T>(-e);
  const auto near = magnitude_of<T>(e) < splat(T(1));
  *loss = near ? P * square : P * (e - T(1)) + Q;
  *moved = near ? P * (square - e) : Q - P;
}

// Functors from S, T and their ratio to these terms; kKeepsOwn: b is S, not T. Where it is not, `a`
// is what has moved.
template <class T>
struct ForwardTerms {
  static constexpr bool kKeepsOwn = false;
  XENTROPY_INLINE_MEMBER DivergenceTerms<T> operator()(Vec<T> S, Vec<T> P, LogRatio<T> r) const {
    DivergenceTerms<T> t;
    relative_terms<T>(P, S, r.d, &t.loss, &t.a);  // a is S - T
    return t;
  }
};

template <class T>
struct ReverseTerms {
  static constexpr bool kKeepsOwn = true;
  XENTROPY_INLINE_MEMBER DivergenceTerms<T> operator()(Vec<T> S, Vec<T> P, LogRatio<T> r) const {
    DivergenceTerms<T> t;
    relative_terms<T>(S, P, -r.d, &t.loss, &t.moved);
    t.a = -(S * r.u);
    return t;
  }
};

// 1 - exp(-x) for 0 <= x < 1.
template <class T>
XENTROPY_INLINE Vec<T> decay(Vec<T> x) {
  return fma(x * -x, exp_remainder<T>(-x), x);
}

// 0 < beta < 1. Ratios of S and T are quotients where they are far from 1: exp(d) would lose digits
// where d is large.
template <class T>
class BetweenTerms {
 public:
  static constexpr bool kKeepsOwn = true;

  // S, P: the probabilities of class m.
  BetweenTerms(double beta, double log_beta, double S, double P)
      : beta_(splat(T(beta))), not_beta_(splat(T(1 - beta))) {
    const double of_t = beta * P, of_s = (1 - beta) * S, mixed = of_t + of_s;
    k_ = splat(T(of_t / mixed));
    not_k_ = splat(T(of_s / mixed));
    per_ratio_ = splat(T(beta * S / mixed));
    const double log = P < S ? -log1p_of(beta * (S - P) / mixed) : log1p_of(beta * (P - S) / S);
    log_per_ratio_ = splat(T(log_beta - log));
  }

  XENTROPY_INLINE_MEMBER DivergenceTerms<T> operator()(Vec<T> S, Vec<T> P, LogRatio<T> r) const {
    const Vec<T> one = splat(T(1)), size = magnitude_of<T>(r.d);
    const auto above = r.d >= T(0);  // which is the larger of S and T?
    const Vec<T> more = above ? P : S, less = above ? S : P;
    const Vec<T> quotient = less / max(splat(kLeast), more), near = decay<T>(size);
    const Vec<T> lost = size < one ? near : one - quotient;
    DivergenceTerms<T> t;
    t.loss = loss_of(above ? beta_ : not_beta_, above ? not_beta_ : beta_, more, less, lost,
                     size < one ? one - near : quotient, size);
    t.moved = size < one ? more * (above ? lost : -lost) : P - S;
    t.a = -(S * w_of(S, P, r));
    return t;
  }

 private:
  static constexpr T kLeast = sizeof(T) == 4 ? T(0x1p-126) : T(0x1p-1000);

  // weight, rest: of `more`, the larger one of S and T, and of `less` in M. left = less / more,
  // lost = 1 - left.
  XENTROPY_INLINE_MEMBER Vec<T> loss_of(Vec<T> weight, Vec<T> rest, Vec<T> more, Vec<T> less,
                                        Vec<T> lost, Vec<T> left, Vec<T> size) const {
    const Vec<T> p = weight * more, q = rest * less;
    const Vec<T> below = log1p_vector(rest * lost / fma(rest, left, weight));  // log(more / M)
    const Vec<T> above = left > kLeast ? log1p_vector(weight * lost / max(splat(kLeast), left))
                                       : size - below;  // log(M / less)
    const Vec<T> small = fma(p * below * below, exp_remainder<T>(-below),
                             q * above * above * exp_remainder<T>(above));
    return size < T(1) ? small : fma(p, below, -(q * above));
  }

  XENTROPY_INLINE_MEMBER Vec<T> w_of(Vec<T> S, Vec<T> P, LogRatio<T> r) const {
    constexpr T kFar = sizeof(T) == 4 ? 20 : 40;  // exp(-kFar) is nothing beside 1
    const Vec<T> zero = {}, one = splat(T(1)), size = magnitude_of<T>(r.u);
    const auto below = r.u < zero, near = size < one;
    const Vec<T> lost = decay<T>(size), q = r.d + log_per_ratio_;
    const Vec<T> k_exp_u = per_ratio_ * P / max(splat(kLeast), S);
    const Vec<T> far = max(zero, below ? k_ - k_exp_u : k_exp_u - k_);
    const Vec<T> upper = near ? k_ * lost : far;
    const Vec<T> lower =
        below ? (near ? one - k_ * lost : not_k_ + k_exp_u) : (near ? one - lost : one);
    const Vec<T> log = log1p_vector(upper / lower);
    return q > kFar ? q : below ? -log : log;
  }

  Vec<T> beta_, not_beta_, k_, not_k_;
  Vec<T> per_ratio_, log_per_ratio_;  // k exp(u) = per_ratio T / S = exp(d + log_per_ratio)
};

}  // namespace XENTROPY_TIER
}  // namespace xentropy
