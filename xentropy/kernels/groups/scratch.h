// The scratch memory of a group: per-row quantities as one array each, and the exps.
#pragma once
#include "common/workspace.h"
#include "groups/shared.h"
#include "simd/vector_lanes.h"

namespace xentropy {
namespace XENTROPY_TIER {

// Rows per group: about kGroupElements elements, a multiple of 16 rows. Reads may run past the end
// of an array of elements by less than kGroupPadding.
constexpr size_t kGroupElements = 1024, kGroupPadding = 64;
XENTROPY_INLINE size_t group_rows(size_t classes) {
  const size_t rows = kGroupElements / classes / 16 * 16;
  return rows ? rows : 16;
}

// Rows of at most so many classes have loops of their own (groups/tiny.h).
constexpr size_t kTinyClasses = 4;  // with 5, the transposition costs as much as the trees

constexpr bool is_tiny(size_t classes) { return classes > 1 && classes <= kTinyClasses; }

// The rows of a group. Where the number of rows is not a multiple of kRowMultiple, rows of zeros
// are appended.
constexpr size_t kRowMultiple = 16;

template <class T>
struct GroupRows {
  size_t rows, padded;  // without and with the appended rows
  bool none_ignored;    // no row is ignored, nor are the following rows, as far as they are read
  T* exps;              // row after row, 0 at the target
  T* anchor;            // kRoundToInteger - k
  T* peak;              // the maximum, where it is needed
  T* e_target;          // exp of the target
  T* target_entry;   // the target's gradient in the units of the exps, stored in place of its exp
  T *factor, *rest;  // gradient = exps * (factor + rest) - bias; rest: float64 only
  T* bias;           // with dense targets it is multiplied by their masses
  T* masses;         // row by row, 0 at the most probable class, the target of dense rows
  uint32_t* place;   // dense targets: index of the most probable class in the group
  T* label;          // tiny groups: the target, negative for an ignored row
  double *tail_sum, *tail_lost, *odds, *inverse;  // see LaneQuotients
  double* target;                                 // logit of the target
  double* differences;  // sum over c of x_c - x_target; its rounding error: differences_lost
  double* differences_lost;
  double* class_weight;
  int64_t* verdict;
};

template <class T>
struct GroupScratch {
  T *chunks, *row, *copy, *index;  // for a fallback row; of padded rows; see index_rows
  GroupRows<T> g;
  SharedOffset shared;

  GroupScratch(size_t classes, Arena& arena) {
    const size_t rows = group_rows(classes), elements = rows * classes + kGroupPadding;
    chunks = take_chunks<T>(arena);
    row = take_row<T>(arena, classes);
    copy = take<T>(arena, elements);
    index = take<T>(arena, kRowMultiple * classes + kGroupPadding);
    g.exps = take<T>(arena, elements);
    T** const numbers[] = {&g.anchor, &g.peak, &g.e_target, &g.target_entry,
                           &g.factor, &g.rest, &g.bias,     &g.label};
    for (T** array : numbers) *array = take<T>(arena, rows);
    g.place = take<uint32_t>(arena, rows);
    double** const sums[] = {&g.tail_sum,         &g.tail_lost,   &g.odds,
                             &g.inverse,          &g.target,      &g.differences,
                             &g.differences_lost, &g.class_weight};
    for (double** array : sums) *array = take<double>(arena, rows);
    g.verdict = take<int64_t>(arena, rows);
  }
};

// The index vectors for permute that spread one number per row over the elements of kLanes<T>
// adjacent rows: `classes` vectors.
template <class T>
void index_rows(size_t classes, T* index) {
  for (size_t q = 0; q < kLanes<T>; ++q) {
    IntVec<T> row = {};  // filled lane by lane, all rows would take GCC's code 90 ns
    row += decltype(row[0] + 0)(permutation<T>(int64_t(q)));
    for (size_t c = 0; c < classes; c += kLanes<T>) store(index + q * classes + c, (Vec<T>)row);
  }
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
