// The softmax family for short adjacent rows, in groups as in groups/labels.h.
//
//   1. peaks: the maximum of every row, and from it the row's k;
//   2. exp of all elements;
//   3. except for softmax: take the exp of the maximum out, so that L of rows/softmax.h is exact;
//   4. the sums of the rows; rows out of range are computed again, one by one, from their maximum;
//   5. in vectors of rows the reciprocal of the total, or L; for the entropy one more sum;
//   6. write whole vectors: e / total, or (x - peak) - L.
//
// Cost: that of groups/labels.h without a target; softmax needs no logarithm either.
#pragma once
#include "common/log_softmax.h"
#include "common/peak.h"
#include "groups/loop.h"
#include "groups/settle.h"
#include "groups/tiny.h"

namespace xentropy {
namespace XENTROPY_TIER {

// A group and the function to compute.
template <class T>
struct SoftmaxGroup {
  Result what;
  bool without_peak;  // the sum excludes the exp of the maximum
  bool tiny;          // the exps are stored in columns, see groups/tiny.h
  RowShape<T> shape;
  GroupScratch<T> s;

  SoftmaxGroup(const SoftmaxBlock<T>& b, Arena& arena)
      : what(b.what),
        without_peak(what != Result::kSoftmax),
        tiny(is_tiny(b.classes) && what != Result::kEntropy),
        shape(b.classes),
        s(b.classes, arena) {
    index_rows(b.classes, s.index);
    for (size_t q = 0; q < group_rows(b.classes); ++q) s.g.e_target[q] = 0, s.g.label[q] = -1;
  }
};

// Steps 1 to 3, and the sums of step 4.
template <class T>
void exps_of_group(const T* x, const T* next, const SoftmaxGroup<T>& group) {
  const GroupRows<T>& g = group.s.g;
  const size_t C = group.shape.classes;
  if (group.tiny) {
    return with_classes(C, [&](auto classes) {
      if (group.without_peak) tiny_peaks<classes.value>(x, g);
      tiny_exps<classes.value, false>(x, 1, next, g);
    });
  }
  peak_rows(x, g.padded, group.shape, 1, g.anchor, g.peak);
  exp_rows<T, false>(x, C, 1, group.s.index, next, g);
  for (size_t q = 0; group.without_peak && q < g.rows; ++q) {
    extract_exp(q, peak_index(x, q, group.shape, g.peak[q]), g);
  }
  sum_rows<false>(g.exps, g.padded, group.shape, g.tail_sum, g.tail_lost);
}

// Step 4 for row q: the fallback from its maximum.
template <class T>
void fallback_softmax_row(const T* x, size_t q, const SoftmaxGroup<T>& group) {
  const GroupScratch<T>& s = group.s;
  const GroupRows<T>& g = s.g;
  const size_t C = group.shape.classes;
  const Peak<T> peak = peak_of(x, C);
  const RowSums sums =
      exps_from_maximum<T>({chunks_of(x), C, peak.at, 1, false, s.row, s.chunks}, peak.value);
  const Sum total = group.without_peak ? Sum{sums.tail_sum, sums.tail_lost} : sums.exact_total();
  if (!group.without_peak) s.row[peak.at] = T(sums.e_target);
  for (size_t c = 0; c < C; ++c)
    g.exps[group.tiny ? index_in_group<T>(q, c, C) : q * C + c] = s.row[c];
  if (group.without_peak) g.e_target[q] = T(sums.e_target);
  g.tail_sum[q] = total.value;
  if (sizeof(T) == 8) g.tail_lost[q] = total.lost;
}

// Step 4 for all rows out of range.
template <class T>
void fallback_softmax_rows(const T* x, const SoftmaxGroup<T>& group) {
  const GroupRows<T>& g = group.s.g;
  const size_t C = group.shape.classes;
  const auto fine = [&](size_t q) XENTROPY_INLINE_LAMBDA {
    return (IntVec<double>)sums_in_range<T>(load(g.tail_sum + q), load_wide(g.e_target + q));
  };
  for (size_t q = 0; q < g.rows; q += kLanes<double>) {
    const IntVec<double> lanes = fine(q);
    if (!any(~lanes)) continue;
    for (size_t i = 0; i < kLanes<double> && q + i < g.rows; ++i) {
      if (lanes[i] == 0) fallback_softmax_row(x + (q + i) * C, q + i, group);
    }
  }
}

// Step 5 for softmax: the factor of every row, and in float64 its rest.
template <class T>
void reciprocals(const GroupRows<T>& rows) {
  const GroupRows<T> g = rows;
  for (size_t q = 0; q < g.rows; q += kLanes<double>) {
    const VD total = load(g.tail_sum + q), factor = 1.0 / total;
    store_narrow(g.factor + q, factor);
    if (sizeof(T) == 4) continue;
    const VD product = factor * total, lost = load(g.tail_lost + q);
    const VD error = product_error<double>(factor, total, product);
    store_narrow(g.rest + q, ((1.0 - product) - error - factor * lost) / total);
  }
}

// Step 5 for the other functions: L of every row, to g.factor as T and to g.target.
template <class T>
void logs_of_rows(const GroupRows<T>& rows) {
  const GroupRows<T> g = rows;
  for (size_t q = 0; q < g.rows; q += kLanes<double>) {
    const VD log = log1p_lanes<T>(load(g.tail_sum + q) / load_wide(g.e_target + q));
    store_narrow(g.factor + q, log);
    store(g.target + q, log);
  }
}

// Calls use(q, i, which) for all vectors of the group: lane l of the vector at element i belongs to
// row q + which[l].
template <class T, class Use>
XENTROPY_INLINE void for_elements(const SoftmaxGroup<T>& group, const Use& use) {
  constexpr size_t L = kLanes<T>;
  const size_t C = group.shape.classes, padded = group.s.g.padded;
  const T* index = group.s.index;
  for (size_t q = 0; q < padded; q += L) {
    for (size_t i = 0; i < L * C; i += L) use(q, q * C + i, (IntVec<T>)load(index + i));
  }
}

// Steps 5 and 6 of the reductions.
template <class T>
void reduce_group(const T* x, const SoftmaxGroup<T>& group, double* value) {
  const GroupRows<T> g = group.s.g;
  const size_t C = group.shape.classes;
  if (group.what == Result::kLogSumExp) {
    for (size_t q = 0; q < g.rows; ++q) {
      value[q] = log_sum_exp(RowLog<T>{g.peak[q], g.target[q]}, x + q * C, C);
    }
    return;
  }
  for_elements(group, [=](size_t q, size_t i, IntVec<T> which) XENTROPY_INLINE_LAMBDA {
    const Vec<T> e = load(g.exps + i), away = permute(load(g.peak + q), which) - load(x + i);
    store(g.exps + i, e == Vec<T>{} ? Vec<T>{} : e * away);  // 0 * inf = 0
  });
  sum_rows<false>(g.exps, g.padded, group.shape, g.differences, g.differences_lost);
  for (size_t q = 0; q < g.rows; ++q) {
    value[q] = g.differences[q] / (g.tail_sum[q] + double(g.e_target[q])) + g.target[q];
  }
}

// Step 6 of softmax and log_softmax.
template <class T, class Stores>
void write_softmax(const T* x, bool last, const SoftmaxGroup<T>& group, Stores& stores) {
  const GroupRows<T> g = group.s.g;
  const size_t C = group.shape.classes, n = g.rows * C;
  if (group.without_peak) {
    return stores.write(n, last, g.exps, [&](const auto& to) XENTROPY_INLINE_LAMBDA {
      for_elements(group, [&](size_t q, size_t i, IntVec<T> which) XENTROPY_INLINE_LAMBDA {
        const LogOf<T> log = {permute(load(g.peak + q), which), permute(load(g.factor + q), which)};
        to(i, log(load(x + i)));
      });
    });
  }
  if (group.tiny) {
    with_classes(C, [&](auto classes) { tiny_scale<classes.value, false>(g); });
    return stores.put(g.exps, n);
  }
  stores.write(n, last, g.exps, [&](const auto& to) XENTROPY_INLINE_LAMBDA {
    scale_rows<Bias::kNone>(g, C, group.s.index, to);
  });
}

template <class T>
size_t softmax_groups_bytes(Result, size_t classes, size_t) {
  return bytes_of<GroupScratch<T>>(classes);
}

template <class T>
void softmax_groups(const SoftmaxBlock<T>& b, char* workspace, bool streamed) {
  const size_t C = b.classes;
  Arena arena = {workspace, 0};
  SoftmaxGroup<T> group(b, arena);
  with_writer(b.out, streamed, [&](auto& writer) {
    for_groups(b.x, nullptr, b.rows, C, group.s, [&](const Group<T>& at) {
      exps_of_group(at.x, at.next, group);
      fallback_softmax_rows(at.x, group);
      if (group.without_peak) {
        logs_of_rows(group.s.g);
      } else {
        reciprocals(group.s.g);
      }
      if (b.out) {
        write_softmax(at.x, at.last, group, writer);
      } else {
        reduce_group(at.x, group, b.value + at.first);
      }
    });
  });
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
