// Fallback for rows of a segment that the vector code cannot finish: ignored rows, and rows with
// numbers out of its range, which are computed one by one by the scalar code of common/settle.h.
#pragma once
#include "common/peak.h"
#include "columns/segment.h"

namespace xentropy {
namespace XENTROPY_TIER {

// Copies a contiguous row to and from column i of the segment. A null `row` means zeros.
template <class T>
void write_column(Segment<T>& s, size_t i, const T* row) {
  for (size_t c = 0; c < s.t.classes; ++c) s.exps_of_class(c)[i] = row ? row[c] : 0;
}
template <class T>
void read_column(Segment<T>& s, size_t i, const T* column, ptrdiff_t stride) {
  for (size_t c = 0; c < s.t.classes; ++c)
    s.workspace.row[c] = column[ptrdiff_t(c) * stride + ptrdiff_t(i)];
}

// Sets the gradient of row i from its sums and returns its loss. The exps are in s.workspace.row.
template <class T>
double finish_alone(Segment<T>& s, size_t i, const RowSums& sums) {
  const Settled settled = settle_row(s.t, s.b, s.begin + i, sums);
  if (s.b.gradient) {
    const GradientFactors<T> f =
        finish_row<T>(s.t, settled, sums, size_t(s.label[i]), nullptr, s.workspace.row);
    s.rows.factor[i] = f.factor;
    s.rows.rest[i] = f.rest;
    s.rows.bias[i] = f.bias;
    write_column(s, i, s.workspace.row);
  }
  return settled.loss;
}

// For a row whose exps are out of range: starts from its maximum.
template <class T>
void fallback_from_maximum(Segment<T>& s, size_t i) {
  read_column(s, i, s.x, s.b.logits_class_stride);
  const RowSums sums = exps_from_maximum<T>(
      {chunks_of(s.workspace.row), s.t.classes, size_t(s.label[i]), s.t.logit_scale, s.smooth,
       s.b.gradient ? s.workspace.row : nullptr, s.workspace.chunks},
      max_of(s.workspace.row, s.t.classes));
  s.b.loss[s.begin + i] = finish_alone(s, i, sums);
}

// For a row whose exps are right, but whose loss or factors are not: starts from its sums.
template <class T>
void fallback_from_sums(Segment<T>& s, size_t i) {
  const size_t y = size_t(s.label[i]);
  const double offset = double(kRoundToInteger<T> - s.anchor[i]) + Exp<T>::kTop,
               scale = s.t.logit_scale;
  RowSums sums;
  sums.tail_sum = s.rows.tail_sum[i];
  sums.tail_lost = sizeof(T) == 4 ? 0 : s.rows.tail_lost[i];
  sums.e_target = s.rows.e_target[i];
  sums.target_distance = logit_distance(offset, double(s.logit_of_target(i)), scale);
  sums.origin = s.rows.origin[i] * scale;
  sums.origin_distance = logit_distance(offset, s.rows.origin[i], scale);
  sums.differences = s.smooth ? s.rows.differences[i] / kLogitSumScale * scale : 0;
  if (s.b.gradient) {
    read_column(s, i, s.workspace.exps, ptrdiff_t(s.width));
    s.workspace.row[y] = 0;
  }
  const double loss = finish_alone(s, i, sums);
  s.b.loss[s.begin + i] = s.rows.settled[i] ? s.rows.loss[i] : loss;
}

template <class T>
void finish_or_fall_back(Segment<T>& s, size_t i) {
  const bool gradient = s.b.gradient;
  if (s.label[i] < 0) {
    if (gradient && !s.rows.is_in_range(i)) write_column<T>(s, i, nullptr);
    s.ignore(i);
  } else if (!s.rows.is_in_range(i)) {
    fallback_from_maximum(s, i);
  } else if (!s.rows.settled[i] || (gradient && !s.rows.finished[i])) {
    fallback_from_sums(s, i);
  } else {
    s.b.loss[s.begin + i] = s.rows.loss[i];
    if (gradient) s.exp_of_target(i) = s.rows.target_entry[i];
  }
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
