// A segment of adjacent rows on its way through the column kernel (columns.h): steps 1, 3
// and 4, and the exps of step 2. A lane is a row.
#pragma once
#include "rows/labels.h"
#include "columns/settle.h"

namespace xentropy {
namespace XENTROPY_TIER {

constexpr size_t kClassesAtOnce = 4;  // their exps are added in T: two roundings each
constexpr size_t kColumnProbe = 4;    // logits of a row from which its k is guessed

template <class T, bool kScaled, bool kSmooth, bool kGradient>
class ColumnRows {
  static constexpr size_t L = kLanes<T>, D = kLanes<double>, N = kColumnRows;
  using Int = decltype(IntVec<T>{}[0] + 0);

 public:
  static constexpr bool kStores = kGradient;

  ColumnRows(const Terms& t, const Block<T>& b, T* scratch)
      : t_(t),
        b_(b),
        scale_(t.logit_scale),
        width_(column_segment(t.classes, sizeof(T))),
        far_(is_far(t)),
        chunk_(scratch),
        row_(scratch + kScratchChunk),
        e_(row_ + scratch_row(t.classes)) {
    for (size_t i = 0; i < N; ++i) {
      rows_.class_weight[i] = rows_.repeat[i] = 1;
      rows_.upstream[i] = b.upstream_all;
      rows_.x_target[i] = 0;
    }
  }

  size_t width() const { return width_; }
  const T* exps(size_t c) const { return e_ + c * width_; }

  // What makes gradient of the exps of the rows i, i + 1, ...
  XENTROPY_INLINE_MEMBER Finisher<T, kSmooth> finisher(size_t i) const {
    return {load(rows_.factor + i), load(rows_.rest + i), load(rows_.bias + i)};
  }

  // The rows [begin, begin + n) of the block. False if none of them counts.
  bool start(size_t begin, size_t n) {
    begin_ = begin;
    n_ = n;
    x_ = b_.logits + begin;
    const int64_t* y = b_.labels + begin;
    int64_t every = -1, some = 0;
    for (size_t i = 0; i < n; ++i) {
      label_[i] = Int(y[i]);
      every &= y[i];
      some |= y[i];
    }
    for (size_t i = n; i < round_up(n); ++i) label_[i] = Int(kIgnored);
    if (every < 0) return false;
    for (size_t i = 0; b_.weight && i < n; ++i) {
      rows_.class_weight[i] = y[i] < 0 ? 0 : b_.weight[y[i]];
    }
    const bool ignored = some < 0;
    differ_ = ignored || b_.weight || b_.repeat || b_.upstream;
    if (ignored || ignored_ || b_.repeat || b_.upstream) {
      for (size_t i = 0; i < n; ++i) {
        const double counts = y[i] < 0 ? 0 : 1;
        rows_.repeat[i] = b_.repeat && counts ? b_.repeat[begin + i] : counts;
        rows_.upstream[i] = counts ? upstream_of(b_, begin + i) : 0;
      }
      ignored_ = ignored;
    }
    return true;
  }

  // No row counts: no logit is read, every gradient is +0.
  void blank() {
    for (size_t c = 0; kGradient && c < t_.classes; ++c) {
      __builtin_memset(e_ + c * width_, 0, n_ * sizeof(T));
    }
    for (size_t i = 0; i < n_; ++i) ignore(i);
  }

  // Step 1.
  void probe() {
    const size_t classes = t_.classes < kColumnProbe ? t_.classes : kColumnProbe;
    for (size_t i = 0; i < n_; i += L) guess(i, largest(i, classes));
  }

  // Step 2 of kClasses classes from c on, for n rows from i on.
  template <size_t kClasses>
  XENTROPY_INLINE_MEMBER void exps_of(size_t c, size_t i, size_t n) {
    const ptrdiff_t stride = b_.logits_class_stride;
    const T* x = x_ + ptrdiff_t(c) * stride;
    T* e = kGradient ? e_ + c * width_ : nullptr;
    const size_t end = i + n;
    for (; i + L <= end; i += L) exps_at<kClasses, true>(x, stride, c, i, L, e);
    if (i < end) exps_at<kClasses, false>(x, stride, c, i, end - i, e);
  }

  // Step 3.
  void check() {
    IntVec<double> bad = {};
    for (size_t i = 0; i < n_; i += L) take_targets(i);
    for (size_t i = 0; i < n_; i += D) bad |= ~rows_.in_range(i);
    if (any(bad)) try_again();
  }

  // Step 4.
  void settle() {
    if (!settle_segment<kGradient>(t_, differ_, rows_, n_)) {
      for (size_t i = 0; i < n_; ++i) settle_alone(i);
      return;
    }
    __builtin_memcpy(b_.loss + begin_, rows_.loss, n_ * sizeof(double));
    for (size_t i = 0; kGradient && i < n_; ++i) place_of_target(i) = rows_.at_target[i];
  }

 private:
  static size_t round_up(size_t n) { return (n + L - 1) / L * L; }

  XENTROPY_INLINE_MEMBER IntVec<T> labels(size_t i) const {
    IntVec<T> label;
    __builtin_memcpy(&label, label_ + i, sizeof label);
    return label;
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
    constexpr T kBelow = T(kHasScalef ? Exp<T>::kFlush : Exponent<T>::kBias);
    const T octave = T(kLn2 / t_.logit_scale);
    Vec<T> n = max(splat(-kMost), origin * (scale_.head * Exp<T>::kLog2E));
    n = n > kMost ? splat(kMost) : n;
    const Vec<T> k = ((n + kRound) - kRound) - T(Exp<T>::kTop);
    store(anchor_ + i, kShift<T> - k);
    store(lowest_ + i, (k - kBelow) * octave);
    store(highest_ + i, (k + T(Exponent<T>::kBias)) * octave);
    store(origin_ + i, origin);
    store_wide(rows_.origin + i, origin);
    for (size_t q = i; q < i + L; ++q) {
      rows_.others[q] = rows_.others_lost[q] = rows_.differences[q] = 0;
      differences_lost_[q] = 0;
      target_[q] = 0;
    }
  }

  // x, e: class c of the first row; the rows i .. i + lanes.
  template <size_t kClasses, bool kWhole>
  XENTROPY_INLINE_MEMBER void exps_at(const T* x, ptrdiff_t stride, size_t c, size_t i,
                                      size_t lanes, T* e) {
    const Shift<T> shift = {load(anchor_ + i), load(lowest_ + i), load(highest_ + i)};
    const DirectExp<T, kScaled> exp = {shift, scale_};
    const size_t width = width_;
    const IntVec<T> label = labels(i);
    const Vec<T> zero = {}, origin = load(origin_ + i), small = splat(T(kSmall));
    Vec<T> v[kClasses], d[kClasses], target = load(target_ + i);
    for (size_t q = 0; q < kClasses; ++q) {
      const T* at = x + ptrdiff_t(q) * stride + i;
      v[q] = kWhole ? load(at) : load_first(at, lanes, zero);
      if (kSmooth) d[q] = fma(v[q], small, -(origin * small));
    }
    for (size_t q = 0; q < kClasses; ++q) v[q] = exp(v[q]);
    for (size_t q = 0; q < kClasses; ++q) {
      if (kGradient) store(e + q * width + i, v[q]);
      const auto hit = label == Int(c + q);
      target = hit ? v[q] : target;
      v[q] = hit ? zero : v[q];
    }
    store(target_ + i, target);
    add_classes(v, rows_.others + i, rows_.others_lost + i);
    if (kSmooth) add_classes(d, rows_.differences + i, differences_lost_ + i);
  }

  // Of a float64 sum: what can be added of what its roundings lost.
  XENTROPY_INLINE_MEMBER void gather_lost(size_t i) {
    if (sizeof(T) == 4) return;
    const VD others = load(rows_.others + i), lost = load(rows_.others_lost + i);
    const VD sum = others + lost;  // |lost| is far smaller
    store(rows_.others + i, sum);
    store(rows_.others_lost + i, lost - (sum - others));
    const VD rest = load(differences_lost_ + i);  // nan where the sum is infinite
    store(rows_.differences + i, load(rows_.differences + i) + (rest == rest ? rest : VD{}));
  }

  // Where the exp of row i's target is in scratch; of an ignored row, where class 0 is.
  T& place_of_target(size_t i) { return e_[size_t(label_[i] < 0 ? 0 : label_[i]) * width_ + i]; }

  // The target's exp of the rows i .. i + L: 1 where they do not count.
  void take_targets(size_t i) {
    store_wide(rows_.e_target + i, labels(i) < Int(0) ? splat(T(1)) : load(target_ + i));
    for (size_t q = i; far_ && q < i + L && q < n_; ++q) {
      if (label_[q] >= 0) rows_.x_target[q] = double(logit_of_target(q));
    }
    for (size_t q = i; q < i + L; q += D) gather_lost(q);
  }

  T logit_of_target(size_t i) const {
    return x_[ptrdiff_t(label_[i]) * b_.logits_class_stride + ptrdiff_t(i)];
  }

  // The rows out of range once more, with k from their largest logit. Their neighbours in the
  // vector repeat what they had.
  void try_again() {
    for (size_t i = 0; i < n_; i += L) {
      Int again[L], found = 0;
      for (size_t q = 0; q < L; ++q) {
        again[q] = label_[i + q] >= 0 && !rows_.is_in_range(i + q) ? -1 : 0;
        found |= again[q];
      }
      if (!found) continue;
      IntVec<T> mask;
      __builtin_memcpy(&mask, again, sizeof mask);
      const Vec<T> before = load(origin_ + i), most = largest(i, t_.classes);
      guess(i, mask ? most : before);
      size_t c = 0;
      for (; c + kClassesAtOnce <= t_.classes; c += kClassesAtOnce) again_at<kClassesAtOnce>(c, i);
      for (; c < t_.classes; ++c) again_at<1>(c, i);
      take_targets(i);
    }
  }

  template <size_t kClasses>
  void again_at(size_t c, size_t i) {
    const ptrdiff_t stride = b_.logits_class_stride;
    exps_at<kClasses, false>(x_ + ptrdiff_t(c) * stride, stride, c, i, n_ - i < L ? n_ - i : L,
                             e_ + c * width_);
  }

  void settle_alone(size_t i) {
    if (label_[i] < 0) {
      if (kGradient && !rows_.is_in_range(i)) write_column(i, nullptr);
      ignore(i);
    } else if (!rows_.is_in_range(i)) {
      by_maximum(i);
    } else if (!rows_.settled[i] || (kGradient && !rows_.finished[i])) {
      by_hand(i);
    } else {
      b_.loss[begin_ + i] = rows_.loss[i];
      if (kGradient) place_of_target(i) = rows_.at_target[i];
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
    const double x_target = double(logit_of_target(i));
    RowSums s;
    s.others = rows_.others[i];
    s.others_lost = sizeof(T) == 4 ? 0 : rows_.others_lost[i];
    s.e_target = rows_.e_target[i];
    s.target_distance = octaves_from(shift + Exp<T>::kTop, x_target, scale);
    s.origin = rows_.origin[i] * scale;
    s.origin_distance = octaves_from(shift + Exp<T>::kTop, rows_.origin[i], scale);
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
  const bool far_;
  bool differ_ = false, ignored_ = false;  // do rows; were some of those before
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
