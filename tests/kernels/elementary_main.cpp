// Compares exp and log1p of one tier (-DXENTROPY_TIER=...) with the C library in a wider type, at
// the float32 numbers of their domain. Prints their largest errors in ulp, and their bounds; exit
// status 1 if one is exceeded. Over all numbers the errors were, with fma and without: exp float32
// 0.912 and 0.981, exp float64 0.982 and 1.078, log1p for float32 0.0125 (2^-30), for float64
// 1.382.
//
//     elementary STEP        every STEP-th number in the order of their bits: 1 for all
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "common/expm1.h"
#include "common/log1p.h"
#include "common/softcap.h"

using namespace xentropy;
using namespace xentropy::XENTROPY_TIER;

namespace {

struct Worst {
  double error = 0;
  float at = 0;
  uint64_t count = 0;

  void merge(const Worst& other) {
    count += other.count;
    if (other.error <= error) return;
    error = other.error;
    at = other.at;
  }
};

// 2^-n for normal numbers with 2^n <= value < 2^(n + 1).
double reciprocal_power(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits = (uint64_t(0x7fe) << 52) - (bits & (uint64_t(0x7ff) << 52));
  std::memcpy(&value, &bits, sizeof bits);
  return value;
}
long double reciprocal_power(long double value) {
  int exponent;
  std::frexp(value, &exponent);
  return std::ldexp(1.0L, 1 - exponent);
}

// The error in ulp of T; W may have more digits.
template <class T, class W>
double ulps(W actual, W exact) {
  constexpr double kUnits = sizeof(T) == 4 ? 0x1p23 : 0x1p52;
  if (actual == exact) return 0;
  const double error = double(std::fabs(actual - exact) * reciprocal_power(exact)) * kUnits;
  return error == error ? error : INFINITY;
}

// Inputs are float32 numbers; those of float64 functions are scaled to have more digits.
float input(float x, float) { return x; }
double input(float x, double) { return double(x) * 0x1.000000a3f1c2dp0; }

// Checks one function, of(vector), against exact(x) in a wider type, for low <= x <= high. In: the
// type of the vector; T: the type whose ulp is the unit.
template <class T, class In, class Of, class Exact>
Worst examine(double low, double high, uint64_t step, uint64_t first, uint64_t stride, const Of& of,
              const Exact& exact) {
  constexpr size_t L = kLanes<In>;
  Worst worst;
  In x[L] = {};
  float given[L] = {};
  size_t n = 0;
  for (uint64_t bits = first * step; bits < uint64_t(1) << 32; bits += stride * step) {
    const uint32_t pattern = uint32_t(bits);
    std::memcpy(&given[n], &pattern, sizeof pattern);
    x[n] = input(given[n], In());
    if (!(x[n] >= low && x[n] <= high) || ++n < L) continue;
    const Vec<In> y = of(load(x));
    for (size_t i = 0; i < L; ++i) {
      const auto right = exact(x[i]);
      worst.merge({ulps<T>(decltype(right + 0)(y[i]), right), given[i], 1});
    }
    n = 0;
  }
  return worst;
}

template <class T, class In, class Of, class Exact>
bool report(const char* name, double bound, double low, double high, uint64_t step, const Of& of,
            const Exact& exact) {
  const unsigned threads = std::thread::hardware_concurrency();
  std::vector<Worst> found(threads ? threads : 1);
  std::vector<std::thread> team;
  for (size_t t = 0; t < found.size(); ++t) {
    team.emplace_back(
        [&, t] { found[t] = examine<T, In>(low, high, step, t, found.size(), of, exact); });
  }
  for (std::thread& t : team) t.join();
  Worst worst;
  for (const Worst& each : found) worst.merge(each);
  const bool good = worst.count > 0 && worst.error <= bound;
  printf("%s %-28s %.4f ulp (%g) at %a, %llu numbers%s\n", XENTROPY_STRING(XENTROPY_TIER), name,
         worst.error, bound, double(worst.at), (unsigned long long)worst.count,
         good ? "" : "  FAILED");
  return good;
}

// The offset k of a row with maximum x, as in rows/labels.h and groups/sums.h.
template <class T>
double offset_of(T x) {
  return std::rint(double(x) * Exp<double>::kLog2E) - Exp<T>::kTop;
}

// exp(x) 2^-k, with the kernel's head and rest of ln 2 instead of ln 2. The error of their sum is a
// factor that all exps of a row share (for float32 up to 0.7 ulp at the largest k). No loss and no
// gradient depends on it, because they are ratios.
template <class W, class T>
W offset(T x, double k) {
  const W above = W(x) - W(k) * W(Exp<T>::kLn2Head);  // exact
  return std::exp(above - W(k) * W(Exp<T>::kLn2Rest));
}

// With k = 0, wherever the result is a normal number; and with k from x, wherever the kernels do
// not subtract the row's maximum.
template <class T, class W>
bool report_exp(const char* type, double bound, uint64_t step) {
  const double most = (Exp<T>::kMaxOffset - 1) * kLn2, bias = Exponent<T>::kBias;
  char name[40];
  snprintf(name, sizeof name, "exp %s", type);
  bool good = report<T, T>(
      name, bound, (1 - bias) * kLn2, bias * kLn2, step,
      [](Vec<T> x) { return DirectExp<T, false>{ExponentOffset<T>(0), LogitScale<T>(1)}(x); },
      [](T x) { return std::exp(W(x)); });
  snprintf(name, sizeof name, "exp %s, k by x", type);
  return report<T, T>(
             name, bound, -most, most, step,
             [](Vec<T> x) {
               Vec<T> anchor = x;
               for (size_t i = 0; i < kLanes<T>; ++i)
                 anchor[i] = T(kRoundToInteger<T> - offset_of(x[i]));
               return AnchoredExp<T, false>(1)(x, anchor);
             },
             [](T x) { return offset<W>(x, offset_of(x)); }) &&
         good;
}

template <class T, class W>
bool report_log1p(const char* name, double bound, uint64_t step) {
  return report<T, double>(
      name, bound, 0x1p-126, 0x1p128, step, [](VD x) { return log1p_lanes<T>(x); },
      [](double x) { return std::log1p(W(x)); });
}

// Both of exp_and_less_1, where exp is a normal number.
bool report_less_1(double bound, double less_1_bound, uint64_t step) {
  const double least = -Exponent<double>::kBias * kLn2 + 2;
  bool good = report<double, double>(
      "exp with exp - 1", bound, least, 700, step, [](VD x) { return exp_and_less_1(x).exp; },
      [](double x) { return std::exp((long double)x); });
  good &= report<double, double>(
      "exp - 1", less_1_bound, least, 700, step, [](VD x) { return exp_and_less_1(x).less_1; },
      [](double x) { return std::expm1((long double)x); });
  return good;
}

// cap * tanh(x / cap), and its slope where that is a normal number.
template <class T, class W>
bool report_softcap(const char* type, double bound, double slope_bound, uint64_t step) {
  const double infinity = INFINITY, normal = (Exponent<T>::kBias - 3) * kLn2 / 2;
  bool good = true;
  for (const double cap : {1.0, 30.0, 1e30}) {
    const Capped<T> capped(Softcap{cap, 1 / cap});
    char name[40];
    snprintf(name, sizeof name, "softcap %g %s", cap, type);
    good &= report<T, T>(
        name, bound, -infinity, infinity, step, [&](Vec<T> x) { return capped(x, nullptr); },
        [&](T x) {
          const W y = W(x) / W(cap);
          return std::fabs(y) < 0x1p-30 ? W(x) : W(cap) * std::tanh(y);
        });
    snprintf(name, sizeof name, "its slope %s", type);
    good &= report<T, T>(
        name, slope_bound, -normal * cap, normal * cap, step,
        [&](Vec<T> x) {
          Vec<T> slope;
          capped(x, &slope);
          return slope;
        },
        [&](T x) {
          const W e = std::exp(-2 * std::fabs(W(x)) / W(cap));
          return 4 * e / ((1 + e) * (1 + e));
        });
  }
  return good;
}

// Whether elements have the same bits capped alone and among others, small and large: vectors of
// small ones are capped by a shorter formula.
template <class T>
bool report_same_alone(const char* type) {
  constexpr size_t kElements = 1 << 14;
  const Softcap softcap = {30, 1 / 30.0};
  std::vector<T> x(kElements), capped(kElements), slope(kElements);
  for (size_t i = 0; i < kElements; ++i) {
    const double noise = double(uint32_t(i * 2654435761u)) * 0x1p-31 - 1;  // from -1 to 1
    x[i] = T(noise * (i / 256 % 2 ? 10.4 : 300));                          // the limit is 10.19
  }
  x[0] = -T(0);
  cap<T>(softcap, x.data(), kElements, capped.data(), slope.data());
  size_t differ = 0;
  for (size_t i = 0; i < kElements; ++i) {
    T alone[2];
    cap<T>(softcap, &x[i], 1, &alone[0], &alone[1]);
    differ += std::memcmp(&alone[0], &capped[i], sizeof(T)) != 0;
    differ += std::memcmp(&alone[1], &slope[i], sizeof(T)) != 0;
  }
  printf("%s softcap alone %s: %zu of %zu numbers differ%s\n", XENTROPY_STRING(XENTROPY_TIER), type,
         differ, 2 * kElements, differ ? "  FAILED" : "");
  return differ == 0;
}

}  // namespace

int main(int, char** arguments) {
  const uint64_t step = strtoull(arguments[1], nullptr, 10), fewer = step * 97;
  // More float64 arguments would not make the test complete, and long double is slow.
  bool good = report_exp<float, double>("float32", kHasFma ? 0.92 : 0.99, step);
  good &= report_exp<double, long double>("float64", kHasFma ? 1 : 1.1, fewer);
  good &= report_less_1(1.1, 2, fewer);
  good &= report_log1p<float, double>("log1p for float32", 0x1p-6, step);
  good &= report_log1p<double, long double>("log1p for float64", 0.95, fewer);
  good &= report<float, float>(
      "log1p in float32", kHasFma ? 1.5 : 2, 0x1p-126, 0x1p126, step,
      [](VF x) {
        const VF one[] = {x};
        VF log[1];
        log1p_vectors(one, log);
        return log[0];
      },
      [](float x) { return std::log1p(double(x)); });
  good &= report_softcap<float, double>("float32", 3.5, 6, step);
  good &= report_softcap<double, long double>("float64", 3, 5, fewer);
  good &= report_same_alone<float>("float32");
  good &= report_same_alone<double>("float64");
  return good ? 0 : 1;
}
