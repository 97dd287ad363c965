// Batches for the driver: inputs that are the same on every machine, and the call that the bindings
// would make for them.
#pragma once
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <vector>

#include "driver/calls.h"
#include "scalar.h"

using namespace xentropy;

// An array that starts `offset` elements after a cache line and ends at the end of its allocation.
template <class S>
class Array {
 public:
  Array(size_t n, size_t offset) : n_(n) {
    const size_t bytes = (n + offset) * sizeof(S);
    void* memory = ::operator new(bytes, kAligned);
    start_ = static_cast<S*>(memory);
    data_ = start_ + offset;
    std::memset(memory, 0, bytes);
  }
  ~Array() { ::operator delete(start_, kAligned); }
  Array(const Array&) = delete;
  S* data() const { return data_; }
  size_t size() const { return n_; }
  bool same_bits(const Array& other) const {
    return std::memcmp(data_, other.data_, n_ * sizeof(S)) == 0;
  }

 private:
  static constexpr std::align_val_t kAligned{64};
  size_t n_;
  S *start_, *data_;
};

// A random number generator with the same numbers for every library and compiler.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t bits() {  // splitmix64
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  double uniform() { return double(bits() >> 11) * 0x1p-53; }
  double normal() {  // approximately: mean 0, variance 1
    double sum = -6;
    for (int i = 0; i < 12; ++i) sum += uniform();
    return sum;
  }

 private:
  uint64_t state_;
};

template <class S>
constexpr DType kDType = sizeof(S) == 4 ? kF32 : kF64;
template <>
constexpr DType kDType<F16> = kF16;
template <>
constexpr DType kDType<BF16> = kBF16;

inline void put_value(float* to, double value) { *to = float(value); }
inline void put_value(double* to, double value) { *to = value; }
inline void put_value(F16* to, double value) { set_value(to, float(value)); }
inline void put_value(BF16* to, double value) { set_value(to, float(value)); }

// An array (outer, classes, inner) in C order; inner is 1 for rows of contiguous classes.
struct Shape {
  size_t outer, classes, inner;
  size_t rows() const { return outer * inner; }
  size_t size() const { return rows() * classes; }
  size_t at(size_t row, size_t c) const {
    return (row / inner * classes + c) * inner + row % inner;
  }
};

// Describes an array as _arrays.pxi does.
inline void append_axis(Axes* axes, size_t length, size_t stride) {
  if (ptrdiff_t(stride) < axes->nearest) axes->nearest = ptrdiff_t(stride);
  if (length == 1) return;
  axes->shape[axes->ndim] = ptrdiff_t(length);
  axes->stride[axes->ndim++] = ptrdiff_t(stride);
}
template <class S>
Layout describe(S* data, const Shape& s, DType dtype) {
  Layout a = {};
  a.data = reinterpret_cast<char*>(data);
  a.dtype = dtype;
  a.rows.nearest = a.classes.nearest = std::numeric_limits<ptrdiff_t>::max();
  append_axis(&a.rows, s.outer, s.classes * s.inner * sizeof(S));
  if (s.inner > 1) append_axis(&a.rows, s.inner, sizeof(S));
  append_axis(&a.classes, s.classes, s.inner * sizeof(S));
  return a;
}

// kPlain: labels only. kOptions: labels, some of them ignored, with all options of a call and of a
// row. kDense: labels with class weights and label smoothing. kProbabilities.
enum class Kind { kPlain, kOptions, kDense, kProbabilities };

constexpr int64_t kIgnoredLabel = -100;

// The arguments of a cross-entropy call. Rows of different kinds alternate: ordinary, flat, steep,
// confident, and far from 0 by different offsets, which cannot be guessed from the previous row.
template <class S>
class Batch {
 public:
  typedef Arithmetic<S> T;

  // seed: of another batch in the same shape.
  Batch(const Shape& shape, Kind kind, size_t offset, uint64_t seed = 0)
      : shape(shape), kind(kind), logits(shape.size(), offset), labels(shape.rows()) {
    Random random(shape.size() * 4 + uint64_t(kind) + (seed << 40));
    for (size_t r = 0; r < shape.rows(); ++r) fill_row(r, random);
    if (kind == Kind::kProbabilities) fill_probabilities(random);
    if (kind == Kind::kDense) fill(&weight, shape.classes, random);
    if (kind == Kind::kOptions) fill(&sample_weight, shape.rows(), random);
    if (kind == Kind::kOptions) fill(&upstream, shape.rows(), random);
  }

  CrossEntropyCall call(S* gradient) {
    CrossEntropyCall c = {};
    c.terms = terms();
    c.rows = shape.rows();
    c.logits = describe(logits.data(), shape, kDType<S>);
    if (gradient) c.gradient = describe(gradient, shape, kDType<S>);
    const Shape column = {shape.outer, 1, shape.inner};
    if (kind == Kind::kProbabilities) {
      c.probabilities = describe(probabilities.data(), shape, kDType<T>);
    } else {
      c.labels = describe(labels.data(), column, kI64);
    }
    c.ignores = true;
    c.ignore_bits = kIgnoredLabel;
    c.weight = weight.empty() ? nullptr : weight.data();
    if (!sample_weight.empty()) c.sample_weight = describe(sample_weight.data(), column, kF64);
    if (!upstream.empty()) c.upstream = describe(upstream.data(), column, kF64);
    c.upstream_all = 1;
    c.softcap = softcap;
    c.float64 = sizeof(T) == 8;
    c.row_loss_float64 = c.float64;
    return c;
  }

  bool counts(size_t row) const { return labels[row] != kIgnoredLabel; }

  // Row r for the scalar reference.
  template <class W>
  scalar::CrossEntropy<W> row(size_t r) const {
    const Terms t = terms();
    scalar::CrossEntropy<W> q;
    for (size_t c = 0; c < shape.classes; ++c) {
      const W hard = kind == Kind::kProbabilities ? W(probabilities[shape.at(r, c)])
                                                  : W(size_t(labels[r]) == c);
      const W of_class = weight.empty() ? W(1) : W(weight[c]);
      const W smoothing = W(t.label_smoothing);
      q.x.push_back(W(value_of(logits.data()[shape.at(r, c)])) * W(t.logit_scale));
      q.mass.push_back(of_class * ((1 - smoothing) * hard + smoothing / W(shape.classes)));
    }
    q.z_loss = W(t.z_loss);
    q.sample_weight = sample_weight.empty() ? W(1) : W(sample_weight[r]);
    q.factor = (upstream.empty() ? W(1) : W(upstream[r])) * q.sample_weight * W(t.logit_scale);
    q.factor /= W(t.divisor);
    q.cancels = kind != Kind::kPlain;
    return q;
  }

  const Shape shape;
  const Kind kind;
  double softcap = 0;
  Array<S> logits;
  std::vector<int64_t> labels;
  std::vector<T> probabilities;
  std::vector<double> weight, sample_weight, upstream;

 private:
  Terms terms() const {
    const bool options = kind == Kind::kOptions, smooth = options || kind == Kind::kDense;
    Terms t = {};
    t.classes = shape.classes;
    t.label_smoothing = smooth && shape.classes > 1 ? 0.1 : 0;
    t.z_loss = options ? 0.01 : 0;
    t.logit_scale = options ? 0.75 : 1;  // products with it are exact in the reference
    t.unit = 1;
    t.divisor = kind == Kind::kPlain ? 1 : 3;
    return t;
  }

  void fill_row(size_t r, Random& random) {
    static const double spreads[] = {3, 0.01, sizeof(S) == 2 ? 10.0 : 60.0, 1, 3};
    static const double offsets[] = {0, 60, -87, 300, -1000, 3e4, -3e4, 3e6, -3e9};
    const size_t sort = r % 5, turn = r / 5, last = kDType<S> == kF16 ? 7 : 9;
    labels[r] = int64_t(random.bits() % shape.classes);
    const double offset = sort == 4 ? offsets[turn % last] : 0;
    for (size_t c = 0; c < shape.classes; ++c) {
      put_value(logits.data() + shape.at(r, c), offset + spreads[sort] * random.normal());
    }
    S* target = logits.data() + shape.at(r, size_t(labels[r]));
    if (sort == 3) put_value(target, double(turn % (sizeof(T) == 8 ? 700 : 80)));
    if (kind == Kind::kOptions && r % 7 == 6) {
      labels[r] = kIgnoredLabel;
      put_value(logits.data() + shape.at(r, 0), std::numeric_limits<double>::quiet_NaN());
    }
  }

  void fill_probabilities(Random& random) {
    probabilities.resize(shape.size());
    for (size_t r = 0; r < shape.rows(); ++r) {
      double sum = 0;
      std::vector<double> p(shape.classes);
      for (double& each : p) sum += each = random.uniform() < 0.1 ? 0 : random.uniform() + 1e-3;
      for (size_t c = 0; c < p.size(); ++c) {
        probabilities[shape.at(r, c)] = T(sum > 0 ? p[c] / sum : 1);
      }
    }
  }

  static void fill(std::vector<double>* v, size_t n, Random& random) {
    for (size_t i = 0; i < n; ++i) v->push_back(0.5 + random.uniform());
  }
};
