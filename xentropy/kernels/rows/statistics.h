// Everything of a row in one read, class axis contiguous: see common/statistics.h.
//
// Cost: one read of memory and one exp per element, as the loss alone. In registers with it, a
// maximum, a subtraction, a product, a sum and a fused multiply-add; from the L1 cache a comparison
// for the rank, which chunks without a logit larger than the target's save. Steps for each part of
// kRowPart:
//
//   1. probe: the largest of the first logits (16 chunks), and its class;
//   2. chunk by chunk: the sums of the exps, of their squares and of their products with the
//      distances from the largest logit so far, which is itself no part of them; then the rank;
//   3. a chunk with a logit larger than all before is summed again from there, after the sums so
//      far have been set aside: for logits in random order once or twice a part.
//
// The parts are joined in order, so that threads that share a row compute the same bits. A row
// whose range was not guessed right is computed again from its maximum.
#pragma once
#include "common/statistics.h"
#include "common/workspace.h"

namespace xentropy {
namespace XENTROPY_TIER {

// The exps of the row are put so much lower that the squares of all that pass as in range are
// finite: the largest probed one near 2^12 (2^10 in float64), and totals below 2^62 (2^510).
template <class T>
constexpr int kLower = sizeof(T) == 4 ? 38 : 390;
template <class T>
constexpr double kLowerFactor = sizeof(T) == 4 ? 0x1p38 : 0x1p390;

template <class T>
bool low_in_range(const StatisticsSums<double>& s) {
  return total_in_range<T>((s.tail_sum + s.e_peak) * kLowerFactor<T>) &&
         !needs_flush<T>(s.tail_sum);
}

// Which classes rank before the target: those with a larger logit, or an equal one and a smaller
// index. Before the target these are the logits above the next smaller number.
template <class T>
class RankedTarget {
 public:
  const size_t at;
  const bool counts;  // false: no class ranks before it

  RankedTarget(size_t y, T logit, bool ranked)
      : at(y),
        counts(ranked),
        after_(ranked ? logit : T(INFINITY)),
        before_(ranked ? next_below<T>(splat(logit))[0] : after_) {}

  // How many of the classes [begin, end) rank before it. most: a vector with the largest of them.
  template <class S>
  XENTROPY_INLINE_MEMBER size_t count(const S* x, size_t begin, size_t end, Vec<T> most) const {
    const size_t middle = at < begin ? begin : at < end ? at : end;
    if (!any(most > splat(middle > begin ? before_ : after_))) return 0;
    return larger(x, begin, middle, splat(before_)) + larger(x, middle, end, splat(after_));
  }

 private:
  const T after_, before_;

  template <class S>
  static XENTROPY_INLINE_MEMBER size_t larger(const S* x, size_t begin, size_t end, Vec<T> than) {
    constexpr size_t L = kLanes<T>;
    const Vec<T> none = splat(T(-INFINITY));
    size_t found = 0, c = begin;
    for (; c + 4 * L <= end; c += 4 * L) {
      for (size_t q = 0; q < 4; ++q) found += lanes_larger(load(x + c + q * L), than);
    }
    for (; c + L <= end; c += L) found += lanes_larger(load(x + c), than);
    return c < end ? found + lanes_larger(load_first(x + c, end - c, none), than) : found;
  }
};

// A row as it is summed: its largest logit so far is -inf.
template <class S>
class RowWithoutPeak {
 public:
  RowWithoutPeak(const S* x, size_t classes, size_t peak) : x_(x), classes_(classes) { move(peak); }

  void move(size_t peak) {
    vector_ = peak / L * L;
    const size_t n = classes_ - vector_ < L ? classes_ - vector_ : L;
    for (size_t i = 0; i < n; ++i) part_[i] = x_[vector_ + i];
    set_value(part_ + (peak - vector_), -INFINITY);
  }
  // The vector of classes from c on, a multiple of its lanes.
  XENTROPY_INLINE_MEMBER const S* at(size_t c) const { return c == vector_ ? part_ : x_ + c; }

 private:
  static constexpr size_t L = kLanes<Arithmetic<S>>;
  const S* x_;
  size_t classes_, vector_;
  S part_[L];
};

// The sums of a row or of a part of it, and where the largest logit is.
struct RowMoments {
  StatisticsSums<double> sums;  // without the target
  size_t at, rank;

  // Adds the classes behind these. Of equal maxima the first stays.
  void join(const RowMoments& more) {
    const bool moves = more.sums.peak > sums.peak;
    const StatisticsSums<double> less = moves ? sums : more.sums;
    if (moves) sums = more.sums, at = more.at;
    rank += more.rank;
    const double total = less.tail_sum + less.e_peak;
    if (total == 0) return;  // also if less.peak is -inf
    sums.tail_sum += total;
    sums.distance += less.distance + (sums.peak - less.peak) * total;
    sums.square += less.square + less.e_peak * less.e_peak;
  }
};
constexpr RowMoments kNoMoments = {{-INFINITY, 0, 0, 0, 0, 0}, 0, 0};

// The classes [begin, end) of part number `part`.
struct RowPart {
  size_t begin, end;
  RowPart(size_t part, size_t classes)
      : begin(part * kRowPart), end(classes - begin < kRowPart ? classes : begin + kRowPart) {}
};

// One row. S: type in memory. kScaled: logit_scale is not 1.
template <class S, bool kScaled>
struct StatisticsRow {
  typedef Arithmetic<S> T;
  static constexpr size_t kProbed = 16 * kChunk<T>;

  struct Totals {
    Total<T> tail_sum, distance, square;
  };

  const S* x;
  size_t classes;
  RankedTarget<T> target;
  T first_peak;
  DirectExp<T, kScaled> exp;

  StatisticsRow(const StatisticsBlock<S>& b, size_t r)
      : x(b.x + ptrdiff_t(r) * b.x_stride),
        classes(b.classes),
        target(target_of(b, x, r)),
        first_peak(max_of(x, classes < kProbed ? classes : kProbed)),
        exp(exp_of(first_peak, kScaled ? b.logit_scale : 1)) {}

  static RankedTarget<T> target_of(const StatisticsBlock<S>& b, const S* x, size_t r) {
    const size_t y = b.labels ? size_t(b.labels[r]) : 0;
    const T logit = value_of(x[y]);
    return {y, logit, b.to.rank && logit > T(-INFINITY)};
  }
  static DirectExp<T, kScaled> exp_of(T peak, double scale) {
    const double k = guess_offset<T>(peak, scale) + kLower<T>;
    return {ExponentOffset<T>(k, scale), LogitScale<T>(scale)};
  }

  // Vectors of logits to their exps, and in their place the distances from `top`: finite where the
  // exp is 0. Four at a time, because so many chains of operations hide one another's latency.
  template <size_t n>
  XENTROPY_INLINE_MEMBER void exps(Vec<T> (&v)[n], Vec<T> top, Vec<T>* most, Vec<T> (&e)[n]) const {
    for (Vec<T>& each : v) {
      *most = max(*most, each);
      each = exp.k.clamp(each);
    }
    exp.of_clamped(v, e);
    for (Vec<T>& each : v) each = top - each;
  }

  // Step 2 for the classes [begin, end). Returns a vector with the largest logit but the peak. The
  // exps are rounded twice on their way into the total, as in common/sums.h; products and squares
  // up to nine times. Products are rounded before they are added: exact ones can be ties, which
  // exps that differ between tiers (common/exp.h) would decide.
  XENTROPY_INLINE_MEMBER Vec<T> add(const RowWithoutPeak<S>& row, size_t begin, size_t end, T peak,
                                    Totals* to) const {
    constexpr size_t L = kLanes<T>, K = kLine<T>;
    const Vec<T> top = exp.k.clamp(splat(peak)), none = splat(T(-INFINITY));
    Totals s = *to;  // a copy, which no store can alias
    Vec<T> most = none;
    size_t c = begin;
    for (size_t lane = 0; lane < K; lane += L) {
      Vec<T> distance[2] = {}, square[2] = {};
      for (c = begin; c + 4 * K <= end; c += 4 * K) {
        for (size_t i = c; lane == 0 && i < c + 4 * K; i += kLine<S>) prefetch_read(x + i);
        Vec<T> v[4], e[4];
        for (size_t q = 0; q < 4; ++q) v[q] = load(row.at(c + q * K + lane));
        exps(v, top, &most, e);
        for (size_t q = 0; q < 4; ++q) distance[q % 2] += e[q] * v[q];
        for (size_t q = 0; q < 4; ++q) square[q % 2] = fma(e[q], e[q], square[q % 2]);
        s.tail_sum.at[lane / L].add((e[0] + e[1]) + (e[2] + e[3]));
      }
      s.distance.at[lane / L].add(distance[0] + distance[1]);
      s.square.at[lane / L].add(square[0] + square[1]);
    }
    for (; c < end; c += L) {
      const S* p = row.at(c);
      Vec<T> v[1] = {end - c < L ? load_first(p, end - c, none) : load(p)}, e[1];
      exps(v, top, &most, e);
      s.tail_sum.at[c % K / L].add(e[0]);
      s.distance.at[c % K / L].add(e[0] * v[0]);
      s.square.at[c % K / L].add(e[0] * e[0]);
    }
    *to = s;
    return most;
  }

  RowMoments moments(const Totals& s, T peak, size_t at) const {
    return {{double(peak), 0, s.tail_sum.value().value, double(exp(splat(peak))[0]),
             s.distance.value().value, s.square.value().value},
            at,
            0};
  }

  RowMoments part(RowPart p) const {
    const size_t begin = p.begin, end = p.end;
    const size_t probed = end - begin < kProbed ? end - begin : kProbed;
    T peak = begin == 0 ? first_peak : max_of(x + begin, probed);
    size_t at = begin + find(x + begin, probed, peak), rank = 0;
    RowWithoutPeak<S> row(x, classes, at);
    RowMoments before = kNoMoments;
    Totals sums = {};
    for_chunks<T>(begin, end, [&](size_t i, size_t n) XENTROPY_INLINE_LAMBDA {
      Totals with = sums;
      Vec<T> most = add(row, i, i + n, peak, &with);
      while (any(most > splat(peak))) {
        before.join(moments(sums, peak, at));
        peak = max_lanes<T>(most);
        at = i + find(x + i, n, peak);
        row.move(at);
        with = sums = Totals();
        most = add(row, i, i + n, peak, &with);
      }
      sums = with;
      rank += target.count(x, i, i + n, at - i < n ? splat(peak) : most);
    });
    before.join(moments(sums, peak, at));
    before.rank = rank;
    return before;
  }
};

// Writes the numbers of row r from its moments. chunks: scratch, two chunks.
template <class S, bool kScaled>
void put_moments(const StatisticsBlock<S>& b, size_t r, const StatisticsRow<S, kScaled>& row,
                 RowMoments all, Arithmetic<S>* chunks) {
  typedef Arithmetic<S> T;
  StatisticsSums<double>& s = all.sums;
  if (!low_in_range<T>(s) || row.first_peak == T(-INFINITY)) {
    return statistics_from_maximum(b, r, row.x, chunks);
  }
  const RankedTarget<T>& y = row.target;
  s.target = double(value_of(row.x[y.at]));
  put_statistics(b, r, statistics_of(s, log1p_of(s.tail_sum / s.e_peak), b.logit_scale));
  b.to.argmax[r] = int64_t(all.at);
  if (b.to.rank) b.to.rank[r] = int64_t(y.counts ? all.rank : rank_of(row.x, b.classes, y.at));
}

// Joins the moments of the parts; of(part) returns those of one.
template <class Of>
RowMoments joined_parts(size_t classes, const Of& of) {
  RowMoments all = kNoMoments;
  for (size_t part = 0; part < row_parts(classes); ++part) all.join(of(part));
  return all;
}

template <class S, bool kScaled>
void statistics_row(const StatisticsBlock<S>& b, size_t r, Arithmetic<S>* chunks) {
  const StatisticsRow<S, kScaled> row(b, r);
  const auto of = [&](size_t part) { return row.part(RowPart(part, b.classes)); };
  put_moments(b, r, row, joined_parts(b.classes, of), chunks);
}

template <class S>
size_t statistics_bytes(size_t) {
  typedef Arithmetic<S> T;
  Arena counted = {nullptr, 0};
  take_chunks<T>(counted);
  return counted.used;
}

template <class S>
void statistics(const StatisticsBlock<S>& b, char* workspace) {
  Arena arena = {workspace, 0};
  Arithmetic<S>* chunks = take_chunks<Arithmetic<S>>(arena);
  with_scaled(b.logit_scale, [&](auto scaled) {
    for (size_t r = 0; r < b.rows; ++r) {
      if (b.labels && b.labels[r] == kIgnored) continue;
      statistics_row<S, scaled.value>(b, r, chunks);
    }
  });
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
