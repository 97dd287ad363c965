// The group kernel: short adjacent rows with class indices.
//
// Cost: as in the row kernel, each logit is read and each gradient is written once. About 1024
// elements (a multiple of 16 rows) stay in the L1 cache while simple loops pass over them. No pass
// soon reads data that it wrote in another width, which would stall:
//
//   1. k, guessed from the first logits of the block, for all of its rows (groups/shared.h);
//   2. exp of all elements, in whole vectors;
//   3. take the targets' exps out, one by one;
//   4. tail_sum: the sums of the rows, by a tree of shuffles in float64, and their quotients;
//   5. losses and factors, in vectors of rows; store the target entries;
//   6. if k does not suit a row, this group and those after it use a k per row: a tree also finds
//      the maxima, and a permutation spreads k over the elements. Rows out of every range (|x|
//      huge, inf, nan, a loss beyond the exponent range) are computed one by one;
//   7. scale, and write whole cache lines.
//
// A power of two changes no bit, and lanes are independent: no bit of a row depends on its
// neighbours. At the end of a batch, where reading a whole line is not allowed, and next to ignored
// rows, a group runs on a copy padded with zeros.
#pragma once
#include "common/peak.h"
#include "groups/loop.h"
#include "groups/settle.h"
#include "groups/tiny.h"

namespace xentropy {
namespace XENTROPY_TIER {

// Steps 2 and 3 with one k for all rows. The targets of one pack of rows are taken while the exps
// of the next are computed: this overlaps loads and stores with arithmetic and reads what has
// reached the cache. kScaled: logit_scale is not 1.
template <class T, bool kScaled>
void exp_group(const T* x, const int64_t* labels, size_t classes,
               const DirectExp<T, kScaled>& exp_of, const T* next, const GroupRows<T>& rows) {
  const GroupRows<T> g = rows;
  const DirectExp<T, kScaled> exp = exp_of;  // a copy, which no store can alias
  for (size_t q = 0; q < g.padded; q += kRowMultiple) {
    for (size_t i = q * classes; i < (q + kRowMultiple) * classes; i += kLine<T>) {
      prefetch_group(next + i);
      for (size_t v = i; v < i + kLine<T>; v += kLanes<T>) store(g.exps + v, exp(load(x + v)));
    }
    if (q > 0) extract_targets(labels, classes, q - kRowMultiple, q, g);
  }
  extract_targets(labels, classes, g.padded - kRowMultiple, g.rows, g);
  zero_ignored(labels, classes, g);
}

// The sums of x_c - x_target, for label smoothing.
template <class T>
void sum_differences_of_rows(const T* x, const RowShape<T>& shape, const GroupRows<T>& g) {
  sum_rows<true>(x, g.padded, shape, g.differences, g.differences_lost);
  const VD classes = splat(double(shape.classes));
  for (size_t q = 0; q < g.padded; q += kLanes<double>) {
    const VD target = load(g.target + q), all = classes * target;
    VD difference = load(g.differences + q) - all;
    if (sizeof(T) == 8) {
      difference += load(g.differences_lost + q) - product_error<double>(classes, target, all);
    }
    store(g.differences + q, difference);
  }
}

// Step 6 for row q: the fallback from its maximum.
template <class T>
void fallback_row(const Terms& t, const Block<T>& b, size_t first, size_t q, const T* x,
                  const GroupScratch<T>& s) {
  const GroupRows<T>& g = s.g;
  const size_t C = t.classes, r = first + q;
  T* e = b.gradient ? s.row : nullptr;
  const T *row = x + q * C, peak = max_of(row, C);
  const size_t y = size_t(b.labels[r]);
  const RowSums sums = exps_from_maximum<T>(
      {chunks_of(row), C, y, t.logit_scale, t.label_smoothing != 0, e, s.chunks}, peak);
  const double class_weight = b.weight ? b.weight[y] : 1;
  const Settled settled =
      settle<T>(t, class_weight, sample_weight_of(b, r), upstream_of(b, r), sums);
  if (g.verdict[q] == kRowFallback) b.loss[r] = settled.loss;
  if (!e) return;
  const GradientFactors<T> f = finish_row<T>(t, settled, sums, y, nullptr, e);
  g.target_entry[q] = e[y];
  g.factor[q] = f.factor;
  g.rest[q] = f.rest;
  g.bias[q] = f.bias;
  for (size_t c = 0; c < C; ++c) g.exps[index_in_group<T>(q, c, C)] = e[c];
}

// Steps 1 to 4 with a k per row.
template <class T>
void exp_and_sum(const Terms& t, const Block<T>& b, size_t first, const T* x, const T* next,
                 const RowShape<T>& shape, const GroupScratch<T>& s) {
  const GroupRows<T>& g = s.g;
  if (is_tiny(t.classes)) {
    for (size_t q = 0; q < g.rows; ++q) g.label[q] = T(b.labels[first + q]);
    for (size_t q = g.rows; q < g.padded; ++q) g.label[q] = 0;
    with_classes(t.classes, [&](auto classes) {
      with_scaled(t.logit_scale, [&](auto scaled) {
        tiny_exps<classes.value, scaled.value>(x, t.logit_scale, next, g);
      });
    });
    for (size_t q = 0; q < g.padded; q += kLanes<double>) {
      store_quotients(q, load(g.tail_sum + q), sizeof(T) == 8 ? load(g.tail_lost + q) : VD{}, g);
    }
    return;
  }
  peak_rows(x, g.padded, shape, t.logit_scale, g.anchor, g.peak);
  with_scaled(t.logit_scale, [&](auto scaled) {
    exp_rows<T, scaled.value>(x, t.classes, t.logit_scale, s.index, next, g);
  });
  extract_targets(b.labels + first, t.classes, 0, g.rows, g);
  zero_ignored(b.labels + first, t.classes, g);
  sum_tails(shape, g);
}

// Steps 1 to 5 with the shared k of the block. False if it does not suit a row.
template <class T>
bool compute_with_shared_offset(const Terms& t, const Block<T>& b, size_t first, const T* x,
                                const T* next, const RowShape<T>& shape, const GroupScratch<T>& s) {
  const GroupRows<T>& g = s.g;
  const ExponentOffset<T> k(s.shared.k, t.logit_scale);
  with_scaled(t.logit_scale, [&](auto scaled) {
    const DirectExp<T, scaled.value> exp = {k, LogitScale<T>(t.logit_scale)};
    exp_group(x, b.labels + first, t.classes, exp, next, g);
  });
  sum_tails(shape, g);
  return losses_and_factors<true>(t, b, first, g);
}

// Steps 1 to 6 for the rows [first, first + g.rows) of the block, read at x. `next` is the input of
// the next group.
template <class T>
void compute_group(const Terms& t, const Block<T>& b, size_t first, const T* x, const T* next,
                   const RowShape<T>& shape, GroupScratch<T>& s) {
  const GroupRows<T>& g = s.g;
  look_up_targets(t, b, first, x, g);
  if (t.label_smoothing != 0) sum_differences_of_rows(x, shape, g);
  if (first == 0) s.shared = guess_shared_offset(t, x, g.rows);
  // The lanes of the last vector beyond the last row are not in range with any k.
  if (is_tiny(t.classes) || g.rows % kLanes<double> != 0) s.shared.useful = false;
  if (s.shared.useful && compute_with_shared_offset(t, b, first, x, next, shape, s)) return;
  s.shared.useful = false;
  exp_and_sum(t, b, first, x, next, shape, s);
  const bool all_settled = losses_and_factors<false>(t, b, first, g);
  for (size_t q = 0; !all_settled && q < g.rows; ++q) {
    if (g.verdict[q] != kSettled) fallback_row(t, b, first, q, x, s);
  }
}

// Step 7. kBias: see Bias. Stores: a writer of groups/writers.h.
template <Bias kBias, class T, class Stores>
void write_group(size_t classes, bool last, const GroupScratch<T>& s, Stores& stores) {
  const GroupRows<T>& g = s.g;
  if (is_tiny(classes)) {
    with_classes(classes, [&](auto n) { tiny_scale<n.value, kBias == Bias::kOfRow>(g); });
    return stores.put(g.exps, g.rows * classes);
  }
  stores.write(g.rows * classes, last, g.exps, [&](const auto& to) XENTROPY_INLINE_LAMBDA {
    scale_rows<kBias>(g, classes, s.index, to);
  });
}

template <class T>
size_t groups_bytes(size_t classes, bool) {
  return bytes_of<GroupScratch<T>>(classes);
}

template <class T>
void groups(const Terms& t, const Block<T>& b, char* workspace, bool streamed) {
  const size_t C = t.classes;
  Arena arena = {workspace, 0};
  GroupScratch<T> s(C, arena);
  const RowShape<T> shape(C);
  index_rows(C, s.index);
  with_writer(b.gradient, streamed, [&](auto& writer) {
    for_groups(b.logits, b.labels, b.rows, C, s, [&](const Group<T>& at) {
      compute_group(t, b, at.first, at.x, at.next, shape, s);
      if (b.gradient == nullptr) return;
      if (t.label_smoothing != 0) {
        write_group<Bias::kOfRow>(C, at.last, s, writer);
      } else {
        write_group<Bias::kNone>(C, at.last, s, writer);
      }
    });
  });
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
