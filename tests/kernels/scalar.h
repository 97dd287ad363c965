// The specification in scalar arithmetic, one row and one class at a time: the reference of the
// driver. W is wide enough that its rounding errors are negligible.
#pragma once
#include <cmath>
#include <cstddef>
#include <vector>

namespace scalar {

template <class W>
using Row = std::vector<W>;

// exp(x_c - max x) of a row, and functions of them. Where a class has a large part of the total,
// 1 - p is computed from the sum of the other exps, so that nothing cancels.
template <class W>
class Softmax {
 public:
  explicit Softmax(const Row<W>& logits) : x_(logits), e_(logits.size()) {
    for (size_t c = 1; c < x_.size(); ++c) top_ = x_[c] > x_[top_] ? c : top_;
    for (size_t c = 0; c < x_.size(); ++c) e_[c] = std::exp(x_[c] - x_[top_]);
    for (W e : e_) total_ += e;
  }
  W p(size_t c) const { return e_[c] / total_; }
  W one_minus_p(size_t c) const { return large(c) ? others(c) / total_ : 1 - p(c); }
  W negative_log_p(size_t c) const {
    return large(c) ? std::log1p(others(c) / e_[c]) : std::log(total_) - (x_[c] - x_[top_]);
  }
  size_t top() const { return top_; }
  W peak() const { return x_[top_]; }
  W above_peak() const { return negative_log_p(top_); }
  W lse() const { return peak() + above_peak(); }
  W entropy() const {
    W sum = 0;
    for (size_t c = 0; c < x_.size(); ++c) sum += e_[c] == 0 ? 0 : p(c) * negative_log_p(c);
    return sum;
  }

 private:
  bool large(size_t c) const { return 8 * e_[c] > total_; }
  W others(size_t c) const {
    W sum = 0;
    for (size_t k = 0; k < e_.size(); ++k) sum += k == c ? 0 : e_[k];
    return sum;
  }

  const Row<W>& x_;
  Row<W> e_;
  size_t top_ = 0;
  W total_ = 0;
};

// A result, and the sum of the magnitudes of its terms: where terms cancel, errors are relative to
// that. 0 if nothing cancels, as without options.
template <class W>
struct Value {
  W value, terms;
};

// One row of cross-entropy; the formulas are those of common/settle.h.
template <class W>
struct CrossEntropy {
  Row<W> x;     // logits times logit_scale
  Row<W> mass;  // target mass per class
  W z_loss = 0, sample_weight = 1;
  W factor = 1;         // of the gradient: upstream * sample_weight * logit_scale / divisor
  bool cancels = true;  // can the terms cancel?

  Value<W> loss(const Softmax<W>& s) const {
    W sum = 0, size = std::fabs(s.lse()) + std::fabs(s.peak());
    for (size_t c = 0; c < x.size(); ++c) sum += mass[c] == 0 ? 0 : mass[c] * s.negative_log_p(c);
    const W loss = sum + z_loss * s.lse() * s.lse();
    return {sample_weight * loss, cancels ? sample_weight * (sum + z_loss * size * size) : 0};
  }
  Value<W> gradient(const Softmax<W>& s, W all_mass, size_t c) const {
    const W z = 2 * z_loss * s.lse(), away = (all_mass - mass[c]) * s.p(c);
    const W value = away - mass[c] * s.one_minus_p(c) + z * s.p(c);
    const W terms = (all_mass + std::fabs(z)) * s.p(c) + mass[c];
    return {factor * value, cancels ? std::fabs(factor) * terms : 0};
  }
  W all_mass() const {
    W sum = 0;
    for (W q : mass) sum += q;
    return sum;
  }
};

}  // namespace scalar
