// The errors of a kernel in ulp, their bounds, and the line that the driver prints of it.
#pragma once
#include <cstdio>
#include <string>

#include "batch.h"

constexpr size_t kRowsChecked = 100;  // per batch; the bits of all rows are compared

// A gradient is off by at most 4 ulp: exp 0.9, the sum 1, factor and product 0.5 to 1 each. With
// all options there are up to 10 roundings (listed in tests/helpers/support.py).
constexpr double kPlainBound = 4, kOptionsBound = 10;

template <class T>
struct WideOf {
  typedef double Type;
};
template <>
struct WideOf<double> {
  typedef long double Type;
};
template <class S>
using Wide = typename WideOf<Arithmetic<S>>::Type;

template <class S>
constexpr int kDigits = sizeof(S) == 8 ? 53 : 24;
template <>
constexpr int kDigits<F16> = 11;
template <>
constexpr int kDigits<BF16> = 8;
template <class S>
constexpr int kLeastExponent = sizeof(S) == 8 ? -1021 : -125;
template <>
constexpr int kLeastExponent<F16> = -13;

// The unit in the last place of `value` as an S.
template <class S, class W>
W unit_of(W value) {
  int exponent = kLeastExponent<S>;
  if (value != 0) std::frexp(value, &exponent);
  if (exponent < kLeastExponent<S>) exponent = kLeastExponent<S>;
  return std::ldexp(W(1), exponent - kDigits<S>);
}

template <class S, class W>
double error_of(S actual, const scalar::Value<W>& exact) {
  typedef Arithmetic<S> T;
  W off = std::fabs(W(value_of(actual)) - exact.value);
  if (sizeof(S) == 2) off -= unit_of<S>(exact.value) / 2;
  const W unit = unit_of<T>(exact.value), of_terms = unit_of<T>(exact.terms);
  const double error = double(off / (exact.terms != 0 && of_terms > unit ? of_terms : unit));
  return error == error ? (error > 0 ? error : 0) : INFINITY;
}

template <class W>
scalar::Value<W> exact_of(Result what, const scalar::Softmax<W>& s, size_t c) {
  switch (what) {
    case Result::kSoftmax:
      return {s.p(c), 0};
    case Result::kLogSoftmax:
      return {-s.negative_log_p(c), 0};
    case Result::kLogSumExp:  // the maximum plus a logarithm, one of which may be negative
      return {s.lse(), std::fabs(s.peak()) + s.above_peak()};
    default:
      return {s.entropy(), 0};
  }
}

inline uint64_t hash_of(const void* data, size_t n) {  // FNV-1a
  uint64_t hash = 0xcbf29ce484222325;
  for (size_t i = 0; i < n; ++i) {
    hash = (hash ^ static_cast<const unsigned char*>(data)[i]) * 0x100000001b3;
  }
  return hash;
}

// The results of a kernel so far.
struct Report {
  bool prints_bits = false;
  std::string name;
  size_t batches = 0;
  double loss = 0, gradient = 0, loss_bound = kPlainBound, gradient_bound = kPlainBound;
  bool same_bits = true;

  void note(double* largest, double error) {
    if (error > *largest) *largest = error;
  }
  void print_bits(const Shape& s, int kind, uint64_t losses, uint64_t gradient) const {
    if (!prints_bits) return;
    printf("%s %zux%zux%zu/%d %016llx %016llx\n", name.c_str(), s.outer, s.classes, s.inner, kind,
           (unsigned long long)losses, (unsigned long long)gradient);
  }
  // Prints the report; returns whether all checks have passed.
  bool close() const {
    const bool good = same_bits && loss <= loss_bound && gradient <= gradient_bound;
    if (!prints_bits) {
      printf("%-40s %3zu batches, loss %5.3g ulp (%g), gradient %5.3g ulp (%g)%s%s\n", name.c_str(),
             batches, loss, loss_bound, gradient, gradient_bound,
             same_bits ? "" : ", BITS DIFFER BETWEEN WAYS", good ? "" : "  FAILED");
    }
    fflush(stdout);
    return good;
  }
};
