// Writers of the gradients of a group: to cache, or with non-temporal stores of whole cache lines.
//
// A full group of rows is a whole number of vectors, so if the gradient starts at a cache line it
// is scaled while it is stored. Otherwise, for non-temporal stores, it is first scaled in place
// (one more pass over L1), and the cache line that straddles two groups is buffered: a non-temporal
// store of a partial line costs as much as a whole one.
#pragma once
#include "common/line_buffer.h"
#include "groups/scratch.h"

namespace xentropy {
namespace XENTROPY_TIER {

// What is subtracted from e * factor: nothing, the bias of the row, or the bias times the mass.
enum class Bias { kNone, kOfRow, kByMass };

// Calls to(i, v) for all vectors of a group, where v is the gradient of the elements i, i + 1, ...
// kBias: see Bias. `index`: see index_rows.
template <Bias kBias, class T, class To>
XENTROPY_INLINE void scale_rows(const GroupRows<T>& rows, size_t classes, const T* index,
                                const To& to) {
  const GroupRows<T> g = rows;
  constexpr size_t L = kLanes<T>;
  constexpr bool kRest = sizeof(T) == 8, kBiased = kBias != Bias::kNone;
  for (size_t q = 0; q < g.padded; q += L) {
    const Vec<T> factors = load(g.factor + q);
    const Vec<T> rests = kRest ? load(g.rest + q) : factors;
    const Vec<T> biases = kBiased ? load(g.bias + q) : factors;
    const size_t begin = q * classes;
    for (size_t i = 0; i < L * classes; i += L) {
      const IntVec<T> which = (IntVec<T>)load(index + i);
      const Vec<T> e = load(g.exps + begin + i), factor = permute(factors, which);
      Vec<T> v = {};
      if (kRest) v = e * permute(rests, which);
      if (kBias == Bias::kOfRow) v -= permute(biases, which);
      if (kBias == Bias::kByMass) v -= load(g.masses + begin + i) * permute(biases, which);
      to(begin + i, kRest || kBiased ? fma(e, factor, v) : e * factor);
    }
  }
}

// Both writers: write() appends the n elements of a group. make(to) produces them, calling to(i, v)
// for every vector v of elements i, i + 1, ...; in the last group vectors may extend beyond n.
// `staged` is a buffer for elements that cannot be stored directly; it may be the array that `make`
// reads.

template <class T>
class RegularGroups {
 public:
  explicit RegularGroups(T* out) : out_(out) {}

  // Appends n elements.
  void put(const T* e, size_t n) {
    __builtin_memcpy(out_, e, n * sizeof(T));
    out_ += n;
  }

  template <class Make>
  void write(size_t n, bool last, T* staged, const Make& make) {
    if (last) {
      make([=](size_t i, Vec<T> v) XENTROPY_INLINE_LAMBDA { store(staged + i, v); });
      return put(staged, n);
    }
    T* out = out_;
    make([=](size_t i, Vec<T> v) XENTROPY_INLINE_LAMBDA { store(out + i, v); });
    out_ += n;
  }
  void flush() {}

 private:
  T* out_;
};

template <class T>
class StreamedGroups {
 public:
  explicit StreamedGroups(T* out) : out_(out) { line_.continue_at(out); }

  template <class Make>
  void write(size_t n, bool last, T* staged, const Make& make) {
    if (last || !line_.empty()) {
      make([=](size_t i, Vec<T> v) XENTROPY_INLINE_LAMBDA { store(staged + i, v); });
      return put(staged, n);
    }
    T* out = out_;
    make([=](size_t i, Vec<T> v) XENTROPY_INLINE_LAMBDA { stream(out + i, v); });
    out_ += n;
  }

  // Appends n elements.
  void put(const T* e, size_t n) {
    size_t i = 0;
    if (!line_.empty()) {
      i = line_.room() < n ? line_.room() : n;
      append(e, i);
    }
    for (; i + kLine<T> <= n; i += kLine<T>, out_ += kLine<T>) {
      stream_line(out_, [=](size_t q) XENTROPY_INLINE_LAMBDA { return load(e + i + q); });
    }
    if (i == n) return;
    line_.continue_at(out_);
    append(e + i, n - i);
  }

  void flush() { line_.flush(); }

 private:
  void append(const T* e, size_t n) {
    line_.append(n, [=](T* to) { __builtin_memcpy(to, e, n * sizeof(T)); });
    out_ += n;
  }

  T* out_;  // where the next element goes
  LineBuffer<T> line_;
};

}  // namespace XENTROPY_TIER
}  // namespace xentropy
