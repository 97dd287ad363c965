// Conversion of float16 and bfloat16 to and from float32 by integer arithmetic: widening is exact,
// narrowing rounds once to nearest even. Branch-free, so that loops vectorise.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace xentropy {

// Elements of 16-bit arrays: for storage only, all arithmetic is in float32.
struct F16 {
  uint16_t bits;
};
struct BF16 {
  uint16_t bits;
};

template <class S>
struct ArithmeticOf {
  typedef S Type;
};
template <>
struct ArithmeticOf<F16> {
  typedef float Type;
};
template <>
struct ArithmeticOf<BF16> {
  typedef float Type;
};
// The type in which elements stored as S are computed.
template <class S>
using Arithmetic = typename ArithmeticOf<S>::Type;

static inline float float_of(uint32_t bits) {
  float f;
  __builtin_memcpy(&f, &bits, 4);
  return f;
}
static inline uint32_t bits_of(float f) {
  uint32_t bits;
  __builtin_memcpy(&bits, &f, 4);
  return bits;
}

static inline float widen_f16(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000u) << 16, magnitude = h & 0x7fffu;
  // The float with these 15 bits is 2^-112 times the value. Subnormals are converted correctly too.
  const uint32_t finite = bits_of(float_of(magnitude << 13) * 0x1p112f);
  const uint32_t infinite = 0x7f800000u | (magnitude << 13);
  return float_of(sign | (magnitude >= 0x7c00u ? infinite : finite));
}

static inline uint16_t narrow_f16(float f) {
  const uint32_t sign = (bits_of(f) >> 16) & 0x8000u, magnitude = bits_of(f) & 0x7fffffffu;
  // Normal: add half a unit in the last place (ties to even) and drop 13 bits.
  const uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1) - (112u << 23)) >> 13;
  // Subnormal: adding 1/2 leaves the value in units of 2^-24 in the low bits, rounded.
  const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  const uint32_t infinite = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  return uint16_t(sign | (magnitude >= 0x477ff000u ? infinite : finite));
}

static inline float widen_bf16(uint16_t h) { return float_of(uint32_t(h) << 16); }

static inline uint16_t narrow_bf16(float f) {
  const uint32_t bits = bits_of(f);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return uint16_t(nan ? (bits >> 16) | 0x40u : rounded);
}

static inline float value_of(F16 h) { return widen_f16(h.bits); }
static inline float value_of(BF16 h) { return widen_bf16(h.bits); }
static inline float value_of(float f) { return f; }
static inline double value_of(double f) { return f; }
static inline void set_value(F16* h, float f) { h->bits = narrow_f16(f); }
static inline void set_value(BF16* h, float f) { h->bits = narrow_bf16(f); }
static inline void set_value(float* p, float f) { *p = f; }
static inline void set_value(double* p, double f) { *p = f; }

}  // namespace xentropy
