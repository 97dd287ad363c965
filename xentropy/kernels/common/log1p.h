// log1p(x) for a vector of float64, x >= 0.
//
// With 1 + x = 2^k (1 + f), 1 + f in [sqrt(1/2), sqrt(2)):
//
//     log1p(x) = k ln 2 + log1p(f),    f = x 2^-k + (2^-k - 1), rounded once
//
// so for small x, f = x and no digit is lost. For float64 results
//
//     log1p(f) = 2 atanh(s) = f - s (f - s^2 p(s^2)),    s = f / (2 + f)
//
// where the large part f - f^2/2 is kept separate, the rounding error of f is added to the small
// part, and ln 2 has two parts. For float32 results a polynomial in f with an error of 2^-30
// suffices, without the division. Coefficients: weighted minimax. Largest error: 0.91 ulp in
// float64 (at every 97th float32 number), 2^-30 relative for float32.
#pragma once
#include "common/exp.h"

namespace xentropy {
namespace XENTROPY_TIER {

template <class T>
struct Log1p;
template <>
struct Log1p<float> {
  static constexpr double kPolynomial[] = {
      0x1.1455b4c4e2e29p-4,  -0x1.de3bc8d4182c8p-4, 0x1.e6f12608bd464p-4,
      -0x1.fc221d7a0ea2ap-4, 0x1.23375be5c91a4p-3,  -0x1.555c4c6380fafp-3,
      0x1.99a4b5dd97df3p-3,  -0x1.00000674285c5p-2, 0x1.5555476a9b1fdp-2};
};
template <>
struct Log1p<double> {
  static constexpr double kPolynomial[] = {
      0x1.2f0d9982b4d4bp-3, 0x1.39a0f3d3e9f9ap-3, 0x1.7466463985935p-3, 0x1.c71c51e7aff45p-3,
      0x1.249249421807ap-2, 0x1.999999997fb29p-2, 0x1.5555555555593p-1};
};

template <class T>
XENTROPY_INLINE VD log1p_polynomial(VD x) {
  VD p = splat(Log1p<T>::kPolynomial[0]);
  for (size_t i = 1; i < sizeof(Log1p<T>::kPolynomial) / sizeof(double); ++i) {
    p = fma(p, x, splat(Log1p<T>::kPolynomial[i]));
  }
  return p;
}

// The error is at most 1 ulp of T for x up to 2^1000. The result is undefined for larger x, inf and
// nan.
template <class T>
XENTROPY_INLINE VD log1p_lanes(VD x) {
  typedef uint64_t U __attribute__((vector_size(kVectorBytes)));
  constexpr uint64_t kRootHalf = 0x3fe6a09e667f3bcd, kOne = 0x3ff0000000000000;
  const U above = (U)(x + 1.0) - kRootHalf;  // its exponent field is k
  const VD scale = (VD)(kOne - (above & 0x7ff0000000000000));
  const VD k = (VD)((above >> 52) | (U)splat(0x1p52)) - 0x1p52;
  const VD f = fma(x, scale, scale - 1.0);
  const VD half_square = 0.5 * f * f;
  if constexpr (sizeof(T) == 4) {
    const VD rest = fma(f * f * f, log1p_polynomial<T>(f), -half_square);
    return fma(k, splat(kLn2), f + rest);
  } else {
    const VD s = f / (f + 2.0), z = s * s, lost = fma(x, scale, (scale - 1.0) - f);
    const VD correction = s * fma(z, log1p_polynomial<T>(z), half_square) + lost;
    const VD low = fma(k, splat(Exp<double>::kLn2Rest), correction);
    return fma(k, splat(Exp<double>::kLn2Head), f - (half_square - low));
  }
}

// log1p of n vectors of T itself, for divergences, step by step as in common/exp.h: off by 1.5 ulp
// at most (2 without fma), for x up to 2^126 (float64: 2^1000).
template <size_t n>
XENTROPY_INLINE void log1p_vectors(const VF (&x)[n], VF (&log)[n]) {
  typedef uint32_t U __attribute__((vector_size(kVectorBytes)));
  constexpr uint32_t kRootHalf = 0x3f3504f3, kOne = 0x3f800000;
  VF k[n], f[n], cube[n];
  for (size_t q = 0; q < n; ++q) {
    const U above = (U)(x[q] + 1.0f) - kRootHalf;
    const VF scale = (VF)(kOne - (above & 0x7f800000));
    k[q] = (VF)((above >> 23) | (U)splat(0x1p23f)) - 0x1p23f;
    f[q] = fma(x[q], scale, scale - 1.0f);
  }
  for (size_t q = 0; q < n; ++q) log[q] = splat(float(Log1p<float>::kPolynomial[0]));
  for (size_t i = 1; i < sizeof(Log1p<float>::kPolynomial) / sizeof(double); ++i) {
    const VF next = splat(float(Log1p<float>::kPolynomial[i]));
    for (size_t q = 0; q < n; ++q) log[q] = fma(log[q], f[q], next);
  }
  for (size_t q = 0; q < n; ++q) cube[q] = f[q] * f[q] * f[q];
  for (size_t q = 0; q < n; ++q) log[q] = fma(cube[q], log[q], -0.5f * f[q] * f[q]);
  for (size_t q = 0; q < n; ++q) log[q] = fma(k[q], splat(float(kLn2)), f[q] + log[q]);
}
template <size_t n>
XENTROPY_INLINE void log1p_vectors(const VD (&x)[n], VD (&log)[n]) {
  for (size_t q = 0; q < n; ++q) log[q] = log1p_lanes<double>(x[q]);
}

// log1p of one number. Unlike the functions of mathematical libraries, it has the same bits on
// every machine.
XENTROPY_INLINE double log1p_of(double x) { return log1p_lanes<double>(splat(x))[0]; }
XENTROPY_INLINE VD log1p_of(VD x) { return log1p_lanes<double>(x); }

}  // namespace XENTROPY_TIER
}  // namespace xentropy
