// The numbers of a group's rows, an array for each, and where they lie in scratch.
#pragma once
#include "common/workspace.h"
#include "groups/shared.h"
#include "simd/vector_lanes.h"

namespace xentropy {
namespace XENTROPY_TIER {

// A group: about kGroupElements elements, a multiple of 16 rows. Reads may run over the end of its
// arrays by less than kGroupPadding.
constexpr size_t kGroupElements = 1024, kGroupPadding = 64;
XENTROPY_INLINE size_t group_rows(size_t classes) {
  const size_t rows = kGroupElements / classes / 16 * 16;
  return rows ? rows : 16;
}

// Rows of so few classes have kernels of their own (group_tiny.h).
constexpr size_t kTinyClasses = 4;  // with 5, the transposition costs what the trees do

constexpr bool is_tiny(size_t classes) { return classes > 1 && classes <= kTinyClasses; }

// The rows of a group, each array in scratch. A number of rows that is no multiple of kPack
// is filled up with rows of zeros.
constexpr size_t kPack = 16;

template <class T>
struct GroupRows {
  size_t rows, padded;
  bool all_count;    // so do the rows after, as far as they are read
  T* exps;           // row after row, 0 at the target
  T* anchor;         // kRoundToInteger - k
  T* peak;           // the largest logit, where it is asked for
  T* e_target;       // exp of the target
  T* target_entry;   // what is put in its place, in the units of the exps
  T *factor, *rest;  // gradient = exps * (factor + rest) - bias; rest of float64 alone
  T* bias;           // of dense targets: times their masses
  T* masses;         // row after row, 0 at the most probable class, which is the target here
  uint32_t* place;   // of dense targets: of the most probable class in the group
  T* label;          // of few classes: the target, negative if the row does not count
  double *tail_sum, *tail_lost, *odds, *inverse;  // LaneQuotients
  double* target;                                 // its logit, and
  double* differences;  // the sum over c of x_c, its rounding error in differences_lost
  double* differences_lost;
  double* class_weight;
  int64_t* verdict;
};

template <class T>
struct GroupScratch {
  T *chunks, *row, *copy, *index;  // of a row that is done alone; of rows filled up; index_rows
  GroupRows<T> g;
  SharedOffset shared;

  GroupScratch(size_t classes, Arena& arena) {
    const size_t rows = group_rows(classes), elements = rows * classes + kGroupPadding;
    chunks = take_chunks<T>(arena);
    row = take_row<T>(arena, classes);
    copy = take<T>(arena, elements);
    index = take<T>(arena, kPack * classes + kGroupPadding);
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

// Which of kLanes<T> rows an element belongs to, for permute: C vectors.
template <class T>
void index_rows(size_t classes, T* index) {
  for (size_t q = 0; q < kLanes<T>; ++q) {
    IntVec<T> row;
    for (size_t i = 0; i < kLanes<T>; ++i) row[i] = permutation<T>(int64_t(q));
    for (size_t c = 0; c < classes; c += kLanes<T>) store(index + q * classes + c, (Vec<T>)row);
  }
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
