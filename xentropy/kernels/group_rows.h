// What the stages of the group kernel hand on: an array for each number of a row.
#pragma once
#include "vector_lanes.h"

namespace xentropy {
namespace XENTROPY_TIER {

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
  T* anchor;         // kShift - k
  T* peak;           // the largest logit, where it is asked for
  T* e_target;       // exp of the target
  T* at_target;      // what is put in its place, in the units of the exps
  T *factor, *rest;  // gradient = exps * (factor + rest) - bias; rest of float64 alone
  T* bias;           // of dense targets: times their masses
  T* masses;         // row after row, 0 at the most probable class, which is the target here
  uint32_t* place;   // of dense targets: of the most probable class in the group
  T* label;          // of few classes: the target, negative if the row does not count
  double *others, *others_lost, *odds, *inverse;  // LaneQuotients
  double* target;                                 // its logit, and
  double* differences;  // the sum over c of x_c, its rounding error in differences_lost
  double* differences_lost;
  double* class_weight;
  int64_t* verdict;
};

}  // namespace XENTROPY_TIER
}  // namespace xentropy
