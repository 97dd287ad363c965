// A segment of adjacent rows on its way through the column kernel (columns.h): steps 1, 3
// and 4, and the exps of step 2. A lane is a row.
#pragma once
#include "rows.h"
#include "settle_lanes.h"

namespace xentropy {
namespace XENTROPY_TIER {

constexpr size_t kClassesAtOnce = 4;  // their exps are added in T: two roundings each
constexpr size_t kColumnProbe = 4;    // logits of a row from which its k is guessed

// Adds a vector of T to the float64 sums of as many rows; of float64 itself exactly.
XENTROPY_INLINE void add_lanes(VF v, double* sum, double*) {
  typedef float Half __attribute__((vector_size(kVectorBytes / 2)));
  union {
    VF whole;
    Half half[2];
  } u = {v};
  store(sum, load(sum) + __builtin_convertvector(u.half[0], VD));
  double* upper = sum + kLanes<double>;
  store(upper, load(upper) + __builtin_convertvector(u.half[1], VD));
}
XENTROPY_INLINE void add_lanes(VD v, double* sum, double* lost) {
  Total<double> total = {load(sum), load(lost)};
  total.add(v);
  store(sum, total.lanes);
  store(lost, total.lost);
}

template <class T, bool kScaled, bool kSmooth, bool kGradient>
class ColumnRows {
  static constexpr size_t L = kLanes<T>, D = kLanes<double>, N = kColumnRows;
  using Int = decltype(IntVec<T>{}[0] + 0);

 public:
  ColumnRows(const Terms& t, const Block<T>& b, T* scratch)
      : t_(t),
        b_(b),
        scale_(t.logit_scale),
        width_(column_segment(t.classes, sizeof(T))),
        chunk_(scratch),
        row_(scratch + kScratchChunk),
        e_(row_ + scratch_row(t.classes)) {
    for (size_t i = 0; i < N; ++i) {
      rows_.class_weight[i] = rows_.repeat[i] = 1;
      rows_.upstream[i] = b.upstream_all;
    }
  }

  size_t width() const { return width_; }
  const T* exps(size_t c) const { return e_ + c * width_; }

  // e[0..L), finished for the rows i, i + 1, ...
  XENTROPY_INLINE_MEMBER Vec<T> finished(const T* e, size_t i) const {
    const Vec<T> v = load(e + i), rest = load(rows_.rest + i);
    return fma(v, load(rows_.factor + i), kSmooth ? fma(v, rest, -load(rows_.bias + i)) : v * rest);
  }

  // The rows [begin, begin + n) of the block. False if none of them counts.
  bool start(size_t begin, size_t n) {
    begin_ = begin;
    n_ = n;
    x_ = b_.logits + begin;
    int64_t every = -1;
    for (size_t i = 0; i < n; ++i) {
      label_[i] = Int(b_.labels[begin + i]);
      every &= b_.labels[begin + i];
    }
    for (size_t i = n; i < round_up(n); ++i) label_[i] = Int(kIgnored);
    for (size_t i = 0; b_.weight && i < n; ++i) {
      rows_.class_weight[i] = label_[i] < 0 ? 0 : b_.weight[label_[i]];
    }
    for (size_t i = 0; b_.repeat && i < n; ++i) rows_.repeat[i] = b_.repeat[begin + i];
    for (size_t i = 0; b_.upstream && i < n; ++i) {
      rows_.upstream[i] = b_.upstream[begin + i] * b_.upstream_all;
    }
    return every != kIgnored || n == 0;
  }

  // No row counts: no logit is read, every gradient is +0.
  void blank() {
    for (size_t c = 0; kGradient && c < t_.classes; ++c) {
      __builtin_memset(e_ + c * width_, 0, n_ * sizeof(T));
    }
    for (size_t i = 0; i < n_; ++i) ignore(i);
  }

  void probe() {
    const size_t classes = t_.classes < kColumnProbe ? t_.classes : kColumnProbe;
    for (size_t i = 0; i < n_; i += L) guess(i, largest(i, classes));
  }

  // Step 2 of kClasses classes from c on.
  template <size_t kClasses>
  XENTROPY_INLINE_MEMBER void exps_of(size_t c) {
    size_t i = 0;
    for (; i + L <= n_; i += L) exps_at<kClasses, true>(c, i);
    if (i < n_) exps_at<kClasses, false>(c, i);
  }

  void check() {
    IntVec<double> bad = {};
    for (size_t i = n_; i < round_up(n_); ++i) rows_.e_target[i] = 1;
    for (size_t i = 0; i < n_; ++i) take_target(i);
    for (size_t i = 0; i < n_; i += D) {
      gather_lost(i);
      const VD total = load(rows_.others + i) + load(rows_.e_target + i);
      const IntVec<double> range = (total >= Exp<T>::kMinTotal) & (total < Exp<T>::kMaxTotal);
      bad |= ~(range & (load(rows_.origin + i) != -INFINITY));
    }
    if (any(bad)) try_again();
  }

  void settle() {
    for (size_t i = 0; i < n_; i += D) settle_and_finish<T, kGradient>(t_, rows_, i);
    for (size_t i = 0; i < n_; ++i) {
      const Int y = label_[i];
      if (y < 0) {
        if (kGradient && !in_range(i)) write_column(i, nullptr);
        ignore(i);
      } else if (!in_range(i)) {
        by_maximum(i);
      } else if (!rows_.settled[i] || (kGradient && !rows_.finished[i])) {
        by_hand(i);
      } else {
        b_.loss[begin_ + i] = rows_.loss[i];
        if (kGradient) e_[size_t(y) * width_ + i] = rows_.at_target[i];
      }
    }
  }

 private:
  static size_t round_up(size_t n) { return (n + L - 1) / L * L; }

  static bool any(IntVec<double> mask) {
    int64_t lane[D], found = 0;
    __builtin_memcpy(lane, &mask, sizeof lane);
    for (size_t q = 0; q < D; ++q) found |= lane[q];
    return found != 0;
  }

  XENTROPY_INLINE_MEMBER Vec<T> logits(size_t c, size_t i) const {
    const T* x = x_ + ptrdiff_t(c) * b_.logits_class_stride + i;
    return i + L <= n_ ? load(x) : load_first(x, n_ - i, Vec<T>{});
  }

  XENTROPY_INLINE_MEMBER Vec<T> largest(size_t i, size_t classes) const {
    Vec<T> m = logits(0, i);
    for (size_t c = 1; c < classes; ++c) m = max(m, logits(c, i));
    return m;
  }

  // k of the rows at i, such that the exp of the logit `origin` is about 2^kTop; and sums of 0.
  XENTROPY_INLINE_MEMBER void guess(size_t i, Vec<T> origin) {
    constexpr T kMost = T(Exp<T>::kMaxShift), kRound = Exponent<T>::kMagic;
    constexpr T kBelow = T(kHasScalef ? Exp<T>::kFlush : Exponent<T>::kBias), kLn2T = T(kLn2);
    Vec<T> n = max(splat(-kMost), origin * (scale_.head * Exp<T>::kLog2E));
    n = n > kMost ? splat(kMost) : n;
    const Vec<T> k = ((n + kRound) - kRound) - T(Exp<T>::kTop);
    store(anchor_ + i, kShift<T> - k);
    store(lowest_ + i, (k - kBelow) * kLn2T);
    store(highest_ + i, (k + T(Exponent<T>::kBias)) * kLn2T);
    store(origin_ + i, origin);
    for (size_t q = i; q < i + L; ++q) {
      rows_.origin[q] = double(origin_[q]);
      rows_.others[q] = rows_.others_lost[q] = rows_.differences[q] = 0;
      differences_lost_[q] = 0;
      target_[q] = 0;
    }
  }

  template <size_t kClasses, bool kWhole>
  XENTROPY_INLINE_MEMBER void exps_at(size_t c, size_t i) {
    const Shift<T> shift = {load(anchor_ + i), load(lowest_ + i), load(highest_ + i)};
    const DirectExp<T, kScaled> exp = {shift, scale_};
    const T* x = x_ + ptrdiff_t(c) * b_.logits_class_stride + i;
    IntVec<T> label;
    __builtin_memcpy(&label, label_ + i, sizeof label);
    const Vec<T> zero = {}, origin = load(origin_ + i), small = splat(T(kSmall));
    Vec<T> e[kClasses], d[kClasses], target = kGradient ? zero : load(target_ + i);
    for (size_t q = 0; q < kClasses; ++q, x += b_.logits_class_stride) {
      const Vec<T> v = kWhole ? load(x) : load_first(x, n_ - i < L ? n_ - i : L, zero);
      e[q] = exp(v);
      if (kSmooth) d[q] = v * small - origin * small;
      if (kGradient) store(e_ + (c + q) * width_ + i, e[q]);
      const auto hit = label == Int(c + q);
      if (!kGradient) target = hit ? e[q] : target;
      e[q] = hit ? zero : e[q];
    }
    if (!kGradient) store(target_ + i, target);
    add_lanes(sum_of(e), rows_.others + i, rows_.others_lost + i);
    if (kSmooth) add_lanes(sum_of(d), rows_.differences + i, differences_lost_ + i);
  }

  static XENTROPY_INLINE_MEMBER Vec<T> sum_of(const Vec<T> (&v)[1]) { return v[0]; }
  static XENTROPY_INLINE_MEMBER Vec<T> sum_of(const Vec<T> (&v)[4]) {
    return (v[0] + v[1]) + (v[2] + v[3]);
  }

  // Of a float64 sum: what can be added of what its roundings lost.
  XENTROPY_INLINE_MEMBER void gather_lost(size_t i) {
    if (sizeof(T) == 4) return;
    const VD others = load(rows_.others + i), lost = load(rows_.others_lost + i);
    const VD sum = others + lost;  // |lost| is far smaller
    store(rows_.others + i, sum);
    store(rows_.others_lost + i, lost - (sum - others));
    store(rows_.differences + i, load(rows_.differences + i) + load(differences_lost_ + i));
  }

  void take_target(size_t i) {
    const Int y = label_[i];
    if (y < 0) {
      rows_.e_target[i] = 1;
    } else {
      rows_.e_target[i] = double(kGradient ? e_[size_t(y) * width_ + i] : target_[i]);
      if (is_far(t_))
        rows_.x_target[i] = double(x_[ptrdiff_t(y) * b_.logits_class_stride + ptrdiff_t(i)]);
    }
  }

  bool in_range(size_t i) const {
    const double total = rows_.others[i] + rows_.e_target[i];
    return total >= Exp<T>::kMinTotal && total < Exp<T>::kMaxTotal && rows_.origin[i] != -INFINITY;
  }

  // The rows out of range once more, with k from their largest logit. Their neighbours in the
  // vector repeat what they had.
  void try_again() {
    for (size_t i = 0; i < n_; i += L) {
      Int again[L], found = 0;
      for (size_t q = 0; q < L; ++q) {
        again[q] = label_[i + q] >= 0 && !in_range(i + q) ? -1 : 0;
        found |= again[q];
      }
      if (!found) continue;
      IntVec<T> mask;
      __builtin_memcpy(&mask, again, sizeof mask);
      const Vec<T> before = load(origin_ + i), most = largest(i, t_.classes);
      guess(i, mask ? most : before);
      size_t c = 0;
      for (; c + kClassesAtOnce <= t_.classes; c += kClassesAtOnce) {
        exps_at<kClassesAtOnce, false>(c, i);
      }
      for (; c < t_.classes; ++c) exps_at<1, false>(c, i);
      for (size_t q = i; q < i + L; q += D) gather_lost(q);
      for (size_t q = i; q < i + L && q < n_; ++q) take_target(q);
    }
  }

  void ignore(size_t i) {
    b_.loss[begin_ + i] = 0;
    rows_.factor[i] = rows_.rest[i] = rows_.bias[i] = 0;
  }

  // Row i of the scratch to and from its column there; null: zeros.
  void write_column(size_t i, const T* row) {
    for (size_t c = 0; c < t_.classes; ++c) e_[c * width_ + i] = row ? row[c] : 0;
  }
  void read_column(size_t i, const T* column, ptrdiff_t stride) {
    for (size_t c = 0; c < t_.classes; ++c) row_[c] = column[ptrdiff_t(c) * stride + ptrdiff_t(i)];
  }

  // Gives row i the loss and gradient that follow from its sums; its exps are in row_.
  double finish_alone(size_t i, const RowSums& s) {
    const Settled settled = settle_row(t_, b_, begin_ + i, s);
    if (kGradient) {
      const Finish<T> f = finish_row<T>(t_, settled, s, size_t(label_[i]), nullptr, row_);
      rows_.factor[i] = f.factor;
      rows_.rest[i] = f.rest;
      rows_.bias[i] = f.bias;
      write_column(i, row_);
    }
    return settled.loss;
  }

  void by_maximum(size_t i) {
    read_column(i, x_, b_.logits_class_stride);
    const RowSums s =
        exp_any_row<T, kSmooth>(row_, t_.classes, size_t(label_[i]), max_of(row_, t_.classes),
                                t_.logit_scale, kGradient ? row_ : nullptr, chunk_);
    b_.loss[begin_ + i] = finish_alone(i, s);
  }

  // A row whose numbers ask for the care of settle.h.
  void by_hand(size_t i) {
    const size_t y = size_t(label_[i]);
    const double shift = double(kShift<T> - anchor_[i]), scale = t_.logit_scale;
    const double x_target = double(x_[ptrdiff_t(y) * b_.logits_class_stride + ptrdiff_t(i)]);
    RowSums s;
    s.others = rows_.others[i];
    s.others_lost = sizeof(T) == 4 ? 0 : rows_.others_lost[i];
    s.e_target = rows_.e_target[i];
    s.target_distance = distance_from_top<T>(x_target, scale, shift);
    s.origin = rows_.origin[i] * scale;
    s.origin_distance = distance_from_top<T>(rows_.origin[i], scale, shift);
    s.differences = kSmooth ? rows_.differences[i] / kSmall * scale : 0;
    if (kGradient) {
      read_column(i, e_, ptrdiff_t(width_));
      row_[y] = 0;
    }
    const double loss = finish_alone(i, s);
    b_.loss[begin_ + i] = rows_.settled[i] ? rows_.loss[i] : loss;
  }

  const Terms& t_;
  const Block<T>& b_;
  const LogitScale<T> scale_;
  const size_t width_;
  T *chunk_, *row_, *e_;
  const T* x_ = nullptr;
  size_t begin_ = 0, n_ = 0;
  alignas(kLineBytes) Int label_[N];
  alignas(kLineBytes) T anchor_[N], lowest_[N], highest_[N], origin_[N], target_[N];
  alignas(kLineBytes) double differences_lost_[N];
  LaneRows<T, N> rows_;
};

}  // namespace XENTROPY_TIER
}  // namespace xentropy
