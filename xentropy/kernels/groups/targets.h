// The targets of a group: one element of each row, which is kept separate from its tail. Plain
// loops over rows.
//
// Cost: two loads and two stores per row to take a target out, a load and a store to put its
// gradient in. exp_group and losses_and_factors do so between arithmetic, which hides most of it.
#pragma once
#include "groups/scratch.h"

namespace xentropy {
namespace XENTROPY_TIER {

// Moves the exp at `place`, the target of row q, to e_target.
template <class T>
XENTROPY_INLINE void extract_exp(size_t q, size_t place, const GroupRows<T>& g) {
  g.e_target[q] = g.exps[place];
  g.exps[place] = 0;
}

// The class of a label; 0 for an ignored row.
XENTROPY_INLINE size_t class_of(int64_t label) { return size_t(label & ~(label >> 63)); }

// Calls each(q, place) for the rows [begin, end), where `place` is the index of the row's target in
// the group.
template <class T, class Each>
XENTROPY_INLINE void for_targets(const int64_t* labels, size_t classes, size_t begin, size_t end,
                                 const GroupRows<T>& g, const Each& each) {
  size_t q = begin, at = begin * classes;
  if (g.none_ignored) {
    for (; q < end; ++q, at += classes) each(q, at + size_t(labels[q]));
  }
  for (; q < end; ++q, at += classes) each(q, at + class_of(labels[q]));
}

// Sets the exps of ignored rows to 0.
template <class T>
void zero_ignored(const int64_t* labels, size_t classes, const GroupRows<T>& g) {
  for (size_t q = 0; !g.none_ignored && q < g.rows; ++q) {
    if (labels[q] == kIgnored) __builtin_memset(g.exps + q * classes, 0, classes * sizeof(T));
  }
}

// Step 3 for the rows [begin, end).
template <class T>
XENTROPY_INLINE void extract_targets(const int64_t* labels, size_t classes, size_t begin,
                                     size_t end, const GroupRows<T>& g) {
  for_targets(labels, classes, begin, end, g,
              [&](size_t q, size_t place) XENTROPY_INLINE_LAMBDA { extract_exp(q, place, g); });
}

// Stores the target entries in place of the exps; they are 0 for ignored rows.
template <class T>
XENTROPY_INLINE void insert_targets(const int64_t* labels, size_t classes, size_t begin, size_t end,
                                    const GroupRows<T>& g) {
  for_targets(labels, classes, begin, end, g, [&](size_t q, size_t place) XENTROPY_INLINE_LAMBDA {
    g.exps[place] = g.target_entry[q];
  });
}

// Looks up the class weight and the logit of each target, where an option needs them.
template <class T>
void look_up_targets(const Terms& t, const Block<T>& b, size_t first, const T* x,
                     const GroupRows<T>& g) {
  const int64_t* labels = b.labels + first;
  for (size_t q = 0; b.weight && q < g.rows; ++q) g.class_weight[q] = b.weight[class_of(labels[q])];
  if (t.label_smoothing == 0 && t.z_loss == 0) return;
  for (size_t q = 0; q < g.rows; ++q) g.target[q] = double(x[q * t.classes + class_of(labels[q])]);
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
