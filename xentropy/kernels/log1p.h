// log(1 + x) for a whole vector of float64, x >= 0.
//
// With u = 1 + x = 2^n (1 + f), 1 + f in [1/sqrt(2), sqrt(2)), what rounding u lost put back
// into f, and s = f / (2 + f), |s| < 0.172:
//
//     log(1 + x) = n ln 2 + log(1 + f),    log(1 + f) = 2 atanh(s) = f - s (f - s^2 q(s^2))
//
// q(z) = 2/3 + 2/5 z + 2/7 z^2 + ...: ten terms leave 1e-18 of the logarithm, and five, for
// results that are rounded to float32, 1e-10. Below x = 0.41 n is 0 and f is x itself, so
// that the smallest x has full relative precision. Largest error seen: 0.9 ulp of float64.
#pragma once
#include "exp.h"

namespace xentropy {
namespace XENTROPY_TIER {

// Finite x >= 0 only; T is the type that the result will be rounded to.
template <class T>
XENTROPY_INLINE VD log1p_lanes(VD x) {
  typedef uint64_t Bits __attribute__((vector_size(kVectorBytes)));
  constexpr double kCoefficients[] = {2.0 / 21, 2.0 / 19, 2.0 / 17, 2.0 / 15, 2.0 / 13,
                                      2.0 / 11, 2.0 / 9,  2.0 / 7,  2.0 / 5,  2.0 / 3};
  constexpr size_t kTerms = sizeof(T) == 4 ? 5 : 10;
  const VD one = splat(1.0), u = one + x, moved = u - one;
  const VD lost = (one - (u - moved)) + (x - moved);
  // n from the exponent of u sqrt(2); as a float64 by way of 2^52 + n
  const Bits n = ((Bits)u - 0x3fe6a09e667f3bcd) >> 52;
  const VD exponent = (VD)(n | 0x4330000000000000) - splat(0x1p52);
  const VD mantissa = (VD)((Bits)u - (n << 52)), down = (VD)((0x3ff - n) << 52);
  const VD f = (mantissa - one) + lost * down;
  const VD s = f / (f + splat(2.0)), z = s * s;
  VD q = splat(kCoefficients[10 - kTerms]);
  for (size_t i = 11 - kTerms; i < 10; ++i) q = fma(q, z, splat(kCoefficients[i]));
  const VD tail = fma(exponent, splat(Exp<double>::kLn2Rest), -s * (f - z * q));
  return fma(exponent, splat(Exp<double>::kLn2Head), f + tail);
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
