// exp(x) and exp(x) - 1 of float64 vectors, for x up to 700: logarithms of probabilities, say.
//
// With n, r and q as in common/exp.h:
//
//     exp(x) = 2^n (1 + m),    exp(x) - 1 = 2^n m + (2^n - 1),    m = r + r^2 q(r)
//
// so for small x, exp(x) - 1 = m and no digit is lost. Largest error: exp 1 ulp, exp - 1 1.5.
// Exps below kMinExactExp, which differ between tiers, are 0.
#pragma once
#include "common/exp.h"

namespace xentropy {
namespace XENTROPY_TIER {

struct ExpAndLess {
  VD exp, less_1;
};

XENTROPY_INLINE ExpAndLess exp_and_less_1(VD x) {
  constexpr size_t kTerms = sizeof(Exp<double>::kPolynomial) / sizeof(double);
  const VD highest = splat(709.0), anchor = splat(kRoundToInteger<double>), zero = {};
  x = ExponentOffset<double>(0).clamp(x);
  x = x > highest ? highest : x;
  const VD t = fma(x, splat(Exp<double>::kLog2E), anchor), n = t - anchor;
  const VD r = fma(n, splat(-Exp<double>::kLn2Rest), fma(n, splat(-Exp<double>::kLn2Head), x));
  VD q = splat(Exp<double>::kPolynomial[0]);
  for (size_t i = 1; i < kTerms; ++i) q = fma(q, r, splat(Exp<double>::kPolynomial[i]));
  const VD m = fma(r * r, q, r), power = ldexp(splat(1.0), t), e = power * (m + 1.0);
  return {e < Exp<double>::kMinExactExp ? zero : e, fma(power, m, power - 1.0)};
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
