// Where a group lies while it is worked on: scratch, cut into arrays.
#pragma once
#include "group_settle.h"

namespace xentropy {
namespace XENTROPY_TIER {

// Hands out scratch, each piece at the start of a cache line.
struct Pieces {
  char* next;
  template <class U>
  U* take(size_t n) {
    U* piece = reinterpret_cast<U*>(next);
    next += (n * sizeof(U) + kLineBytes - 1) / kLineBytes * kLineBytes;
    return piece;
  }
};

template <class T>
struct GroupScratch {
  T *chunk, *row, *copy, *index;
  GroupRows<T> g;
  SharedShift shared;
  Pieces p;  // what is left

  GroupScratch(size_t classes, T* scratch) : p{reinterpret_cast<char*>(scratch)} {
    const size_t rows = group_rows(classes), elements = rows * classes + kGroupPadding;
    chunk = p.take<T>(kScratchChunk);
    row = p.take<T>(classes);
    copy = p.take<T>(elements);
    index = p.take<T>(kPack * classes + kGroupPadding);
    g.exps = p.take<T>(elements);
    T** const numbers[] = {&g.anchor, &g.peak, &g.e_target, &g.at_target,
                           &g.factor, &g.rest, &g.bias,     &g.label};
    for (T** array : numbers) *array = p.take<T>(rows);
    g.place = p.take<uint32_t>(rows);
    double** const sums[] = {&g.others,           &g.others_lost, &g.odds,
                             &g.inverse,          &g.target,      &g.differences,
                             &g.differences_lost, &g.class_weight};
    for (double** array : sums) *array = p.take<double>(rows);
    g.verdict = p.take<int64_t>(rows);
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
