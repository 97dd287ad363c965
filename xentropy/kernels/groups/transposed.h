// Short adjacent rows as columns, a row a lane, and back: kLanes<T> rows at a time.
//
// Cost: log2(kLanes<T>) shuffles per vector of rows and one class, beside a load and a store.
#pragma once
#include "groups/loop.h"
#include "simd/transpose.h"

namespace xentropy {
namespace XENTROPY_TIER {

// Calls visit(constant) with the number of classes, of the `left` last ones of a row, whose vectors
// a transposition has to make: shuffles for others are left out.
template <class T, class Visit>
XENTROPY_INLINE void with_wanted(size_t left, const Visit& visit) {
  constexpr size_t L = kLanes<T>;
  if (left > L / 2) {
    visit(Constant<L>());
  } else if (left > L / 4) {
    visit(Constant<L / 2>());
  } else {
    visit(Constant<(L + 3) / 4>());
  }
}

// Transposes the first n of the classes at x, at most kWanted, of kLanes<T> rows, and passes them
// to visitor->take_class(vector) meanwhile: this overlaps shuffles with other operations. `next` is
// prefetched. Inline, the addresses of the rows would be kept, but in vectors.
template <size_t kWanted, class T, class Visitor>
__attribute__((noinline)) void columns_of_classes(const T* x, size_t classes, size_t n,
                                                  const T* next, T* columns, Visitor* visitor) {
  constexpr size_t L = kLanes<T>;
  Visitor v = *visitor;
  transpose<T>(
      [&](size_t i) XENTROPY_INLINE_LAMBDA {
        if (i % (kLine<T> / L) == 0) prefetch_group(next + i * L);
        return load(x + i * classes);
      },
      [&](size_t c, Vec<T> each) XENTROPY_INLINE_LAMBDA {
        if (c >= kWanted) return;
        store(columns + c * L, each);
        if (c < n) v.take_class(each);
      });
  *visitor = v;
}

// Transposes kLanes<T> rows: columns[c * kLanes<T> + i] is class c of row i. Reads and writes whole
// vectors, that is, less than one more of each row, and less than kLanes<T> more classes. `next`:
// rows to come.
template <class T, class Visitor>
void columns_of_rows(const T* x, size_t classes, const T* next, T* columns, Visitor* visitor) {
  constexpr size_t L = kLanes<T>;
  for (size_t c = 0; c < classes; c += L) {
    with_wanted<T>(classes - c, [&](auto wanted) {
      columns_of_classes<wanted.value>(x + c, classes, classes - c, next + c * L, columns + c * L,
                                       visitor);
    });
  }
}

// The rows of a block, for reads that run past their end by less than a vector.
template <class T>
struct PaddedRows {
  const T* x;  // adjacent rows
  size_t rows, classes;
  const int64_t* labels;  // null: no row is ignored
  T* copy;                // scratch for kLanes<T> rows and a vector

  // kLanes<T> rows from r on: in place, or a copy with zeros for rows that are ignored or missing.
  const T* from(size_t r) const {
    constexpr size_t L = kLanes<T>;
    const T* at = x + r * classes;
    const size_t left = rows - r, read = left < 2 * L ? left : 2 * L;
    const bool beyond = left >= L && (left - L) * classes >= L;
    if (beyond && no_row_ignored(labels ? labels + r : nullptr, read)) return at;
    __builtin_memset(copy, 0, (L * classes + L) * sizeof(T));
    for (size_t i = 0; i < L && i < left; ++i) {
      if (labels && labels[r + i] == kIgnored) continue;
      __builtin_memcpy(copy + i * classes, at + i * classes, classes * sizeof(T));
    }
    return copy;
  }
};

// The reverse of columns_of_classes. Writes whole vectors, row by row.
template <size_t kWanted, class T>
__attribute__((noinline)) void rows_of_classes(const T* columns, size_t classes, T* out) {
  constexpr size_t L = kLanes<T>;
  transpose<T>(
      [&](size_t c)
          XENTROPY_INLINE_LAMBDA { return c < kWanted ? load(columns + c * L) : Vec<T>{}; },
      [&](size_t i, Vec<T> each) XENTROPY_INLINE_LAMBDA { store(out + i * classes, each); });
}

// The reverse of columns_of_rows; also writes less than a vector past the last row. The last
// classes go first: what their vectors write into the rows that follow is overwritten.
template <class T>
void rows_of_columns(const T* columns, size_t classes, T* out) {
  constexpr size_t L = kLanes<T>;
  const size_t last = (classes - 1) / L * L;
  with_wanted<T>(classes - last, [&](auto wanted) {
    rows_of_classes<wanted.value>(columns + last * L, classes, out + last);
  });
  for (size_t c = 0; c < last; c += L) rows_of_classes<L>(columns + c * L, classes, out + c);
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
