// Reductions over the classes of kLanes<double> rows at a time: each row is folded into one vector,
// the vectors into one lane per row (tree() in simd/trees.h).
//
// Cost: for rows of at most one vector one load and about two shuffles per row.
//
// The order of all additions depends on the number of classes alone: rows are cut into lines of
// kLine<T> lanes, whatever the tier's vectors, and lanes are added in halves.
#pragma once
#include "simd/trees.h"
#include "common/sums.h"

namespace xentropy {
namespace XENTROPY_TIER {

// The division of a row into vectors and into cache lines. Reads may run past its end by less than
// a line.
template <class T>
struct RowShape {
  static constexpr size_t L = kLanes<T>, K = kLine<T>;

  size_t classes;
  size_t vectors, lines;         // whole ones before the last, which has 1 to L or K elements
  bool half;                     // the last line fits into half a line
  FirstOfHalves<T> of_two_rows;  // their first half vectors, and -inf beyond their ends
  LastLine<T> last_line;

  explicit RowShape(size_t c)
      : classes(c),
        vectors((c - 1) / L),
        lines((c - 1) / K),
        half(2 * (c - lines * K) <= K),
        of_two_rows(c, T(-INFINITY)),
        last_line(c - lines * K) {}
};

// Reduces n vectors to one, in halves.
template <size_t n, class V, class Add>
XENTROPY_INLINE V fold(V (&v)[n], const Add& add) {
  for (size_t width = n / 2; width > 0; width /= 2) {
    for (size_t i = 0; i < width; ++i) v[i] = add(v[i], v[i + width]);
  }
  return v[0];
}

// Folds a row of float32 into float64 lanes. An exp is rounded to float32 at most once; with kExact
// never. kLines: shape.lines as a constant, or -1.
template <bool kExact, int kLines>
XENTROPY_INLINE VD fold_row(const float* p, const RowShape<float>& shape) {
  constexpr size_t D = kLanes<double>, kHalf = kLine<float> / 2 / D;
  const size_t lines = kLines >= 0 ? size_t(kLines) : shape.lines;
  const auto add = [](VD a, VD b) XENTROPY_INLINE_LAMBDA { return a + b; };
  const auto sum = [](HalfVF a, HalfVF b) XENTROPY_INLINE_LAMBDA {
    return kExact ? widen(a) + widen(b) : widen(a + b);
  };
  const float* end = p + lines * kLine<float>;
  const auto last = [&](size_t h) XENTROPY_INLINE_LAMBDA {
    return shape.last_line(load_half(end + h * D), h);
  };
  if (lines == 0) {
    VD v[kHalf];
    for (size_t h = 0; h < kHalf; ++h) {
      v[h] = shape.half ? widen(last(h)) : sum(load_half(p + h * D), last(h + kHalf));
    }
    return fold(v, add);
  }
  VD v[2 * kHalf] = {};
  size_t i = 0;
  for (; i + 2 <= lines; i += 2) {
    for (size_t h = 0; h < 2 * kHalf; ++h) {
      const float* at = p + i * kLine<float> + h * D;
      v[h] += sum(load_half(at), load_half(at + kLine<float>));
    }
  }
  for (size_t h = 0; h < 2 * kHalf; ++h) {
    const bool none = h >= kHalf && shape.half;
    const HalfVF rest = none ? HalfVF{} : last(h);
    v[h] += i < lines ? sum(rest, load_half(end - kLine<float> + h * D)) : widen(rest);
  }
  return fold(v, add);
}

// The sums of kLanes<double> rows, one per lane. kExact, kLines as above.
template <bool kExact, int kLines>
XENTROPY_INLINE LaneSums sum_lanes_of_rows(const float* p, const RowShape<float>& shape) {
  const auto add = [](auto step, VD a, VD b)
                       XENTROPY_INLINE_LAMBDA { return step.lower(a, b) + step.upper(a, b); };
  if constexpr (kLines == 0 && !kExact && kLanes<double> == 8) {
    const auto row = [&](size_t i) XENTROPY_INLINE_LAMBDA {
      const float* at = p + i * shape.classes;
      return shape.half ? shape.last_line(load_half(at), 0)
                        : load_half(at) + shape.last_line(load_half(at + 8), 1);
    };
    const auto pair = [&](size_t i, size_t j)
                          XENTROPY_INLINE_LAMBDA { return sum_halves(row(i), row(j)); };
    return {tree_of_pairs(pair, add), VD{}};
  }
  VD v[kLanes<double>];
  for (size_t i = 0; i < kLanes<double>; ++i) {
    v[i] = fold_row<kExact, kLines>(p + i * shape.classes, shape);
  }
  return {tree(v, add), VD{}};
}

// Folds a row of float64 without a rounding error. kLines as above.
template <int kLines>
XENTROPY_INLINE LaneSums fold_row(const double* p, const RowShape<double>& shape) {
  constexpr size_t L = kLanes<double>, K = kLine<double>;
  const size_t lines = kLines >= 0 ? size_t(kLines) : shape.lines;
  LaneSums v[K / L];
  for (size_t h = 0; h < K / L; ++h) {
    const bool none = 2 * h >= K / L && K > L && shape.half;
    v[h] = {none ? VD{} : shape.last_line(load(p + lines * K + h * L), h), VD{}};
  }
  for (size_t i = 0; i < lines; ++i) {
    for (size_t h = 0; h < K / L; ++h) {
      const LaneSums next = exact_sums(v[h].value, load(p + i * K + h * L));
      v[h] = {next.value, v[h].lost + next.lost};
    }
  }
  return fold(v, [](const LaneSums& a, const LaneSums& b)
                     XENTROPY_INLINE_LAMBDA { return exact_sums(a, b); });
}

template <bool kExact, int kLines>
XENTROPY_INLINE LaneSums sum_lanes_of_rows(const double* p, const RowShape<double>& shape) {
  LaneSums v[kLanes<double>];
  for (size_t i = 0; i < kLanes<double>; ++i) v[i] = fold_row<kLines>(p + i * shape.classes, shape);
  const LaneSums s =
      tree(v, [](auto step, const LaneSums& a, const LaneSums& b) XENTROPY_INLINE_LAMBDA {
        return exact_sums(LaneSums{step.lower(a.value, b.value), step.lower(a.lost, b.lost)},
                          LaneSums{step.upper(a.value, b.value), step.upper(a.lost, b.lost)});
      });
  const VD finite = s.lost == s.lost ? s.lost : VD{};  // the error terms of an infinite sum are nan
  const LaneSums whole = exact_sums(s.value, finite);
  return {whole.value, whole.value - whole.value == 0 ? whole.lost : VD{}};
}

// Calls f(Constant<n>()) for small n, else f(Constant<-1>()).
template <class F>
XENTROPY_INLINE void with_constant(size_t n, const F& f) {
  switch (n) {
    case 0:
      return f(Constant<0>());
    case 1:
      return f(Constant<1>());
    case 2:
      return f(Constant<2>());
    default:
      return f(Constant<-1>());
  }
}

// Calls use(q, sums) with the sums of the rows q, q + 1, ... for `rows` adjacent rows, a multiple
// of kLanes<double>. kExact: no rounding to float32.
template <bool kExact, class T, class Use>
XENTROPY_INLINE void for_sums(const T* p, size_t rows, const RowShape<T>& row, const Use& use) {
  with_constant(row.lines, [&](auto lines) XENTROPY_INLINE_LAMBDA {
    const RowShape<T> shape = row;  // a copy, which no store can alias
    for (size_t q = 0; q < rows; q += kLanes<double>) {
      use(q, sum_lanes_of_rows<kExact, lines.value>(p + q * shape.classes, shape));
    }
  });
}

// Stores the sums to `value`, and for float64 their rounding errors to `lost`. kExact as above.
template <bool kExact, class T>
void sum_rows(const T* p, size_t rows, const RowShape<T>& row, double* value, double* lost) {
  for_sums<kExact>(p, rows, row, [=](size_t q, const LaneSums& s) XENTROPY_INLINE_LAMBDA {
    store(value + q, s.value);
    if (sizeof(T) == 8) store(lost + q, s.lost);
  });
}

// The maxima of kLanes<double> rows, `stride` elements apart, one per 64-bit lane; float32 lanes
// have two parts of a row. kVectors: shape.vectors as a constant, or -1.
template <int kVectors, class T>
XENTROPY_INLINE VD max_parts_of_rows(const T* p, size_t stride, const RowShape<T>& shape) {
  constexpr size_t L = kLanes<T>;
  const auto most = [](auto step, VD a, VD b) XENTROPY_INLINE_LAMBDA {
    return (VD)max((Vec<T>)step.lower(a, b), (Vec<T>)step.upper(a, b));
  };
  if constexpr (kVectors == 0) {  // parts of a row may overlap
    const size_t end = shape.classes > L / 2 ? shape.classes - L / 2 : 0;
    return tree_of_pairs(
        [&](size_t i, size_t j) XENTROPY_INLINE_LAMBDA {
          const T *a = p + i * stride, *b = p + j * stride;
          return (VD)shape.of_two_rows(max(load_halves(a, b), load_halves(a + end, b + end)));
        },
        most);
  } else {
    const size_t vectors = kVectors > 0 ? size_t(kVectors) : shape.vectors;
    VD v[kLanes<double>];
    for (size_t i = 0; i < kLanes<double>; ++i) {
      const T* row = p + i * stride;
      Vec<T> m = load(row + shape.classes - L);
      for (size_t j = 0; j < vectors; ++j) m = max(m, load(row + j * L));
      v[i] = (VD)m;
    }
    return tree(v, most);
  }
}

// The maxima of kLanes<T> rows. kVectors as above.
template <int kVectors, class T>
XENTROPY_INLINE Vec<T> max_lanes_of_rows(const T* p, const RowShape<T>& shape) {
  typedef uint64_t U __attribute__((vector_size(kVectorBytes)));
  const size_t C = shape.classes;
  if constexpr (sizeof(T) == 8) {
    return max_parts_of_rows<kVectors>(p, C, shape);
  } else {
    const U even = (U)max_parts_of_rows<kVectors>(p, 2 * C, shape);
    const U odd = (U)max_parts_of_rows<kVectors>(p + C, 2 * C, shape);
    const U lower = U{} + 0xffffffff;
    return max((Vec<T>)((even & lower) | odd << 32), (Vec<T>)(even >> 32 | (odd & ~lower)));
  }
}

// The anchors and the maxima of the rows.
template <class T>
void peak_rows(const T* x, size_t rows, const RowShape<T>& row, double scale, T* anchor, T* peak) {
  const Anchors<T> anchors(scale);
  with_constant(row.vectors, [=](auto vectors) {
    const RowShape<T> shape = row;
    for (size_t q = 0; q < rows; q += kLanes<T>) {
      const Vec<T> peaks = max_lanes_of_rows<vectors.value>(x + q * shape.classes, shape);
      store(anchor + q, anchors(peaks));
      store(peak + q, peaks);
    }
  });
}

// The index in the group of the first maximum of row q; of its first element if none is equal to
// `peak` (the peak of a row with nan is nan, or -inf, which following rows may contain).
template <class T>
XENTROPY_INLINE size_t peak_index(const T* x, size_t q, const RowShape<T>& shape, T peak) {
  const size_t begin = q * shape.classes;
  const Vec<T> wanted = splat(peak);
  for (size_t i = 0; i <= shape.vectors; ++i) {
    const size_t lane = first_true(load(x + begin + i * kLanes<T>) == wanted);
    const size_t c = i * kLanes<T> + lane;
    if (lane < kLanes<T>) return c < shape.classes ? begin + c : begin;
  }
  return begin;
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
