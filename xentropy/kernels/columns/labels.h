// The column kernel: class indices, class axis strided, rows adjacent in memory.
//
// A lane is a row, so the sums over classes are plain vector additions. Cost: as in the row kernel
// each logit is read once, each gradient is written once, and there is one exp per element. The
// rows are processed in segments, pipelined like the rows of rows/labels.h:
//
//   1. probe: k of every row from its first logits, so that exp(x) 2^-k is in range;
//   2. four classes at a time: scale and store those of segment s-1 from scratch, then overwrite
//      them with the exps of segment s; the target's exp is left out of the sums;
//   3. check: rows whose total is out of range are computed again with k from their maximum; if
//      that fails too (|x| is huge, inf, nan), they are copied and computed one by one
//      (columns/fallback.h);
//   4. losses and factors, a vector of rows at a time; the target entries go into scratch.
//
// No bit of a row depends on its neighbours, on the segment or on its place there: lanes are
// independent, and whether a row is computed again depends on its own logits alone.
#pragma once
#include "columns/exps.h"
#include "columns/fallback.h"

namespace xentropy {
namespace XENTROPY_TIER {

// Rows of the block.
struct Span {
  size_t begin, n;
};

// Elements from p to the next start of a cache line.
template <class T>
XENTROPY_INLINE size_t to_line(const T* p) {
  return -(reinterpret_cast<uintptr_t>(p) / sizeof(T)) % kLine<T>;
}

// kStreamed: a non-temporal store.
template <bool kStreamed, class T>
XENTROPY_INLINE void put(T* out, Vec<T> v) {
  if (kStreamed) {
    stream(out, v);
  } else {
    store(out, v);
  }
}

// Scales and stores one class of a segment. kStreamed: whole cache lines with non-temporal stores.
// A line that straddles two segments or classes is written in parts with regular stores.
template <bool kStreamed, class T>
void store_class(const Segment<T>& s, size_t c, size_t n, T* out) {
  constexpr size_t L = kLanes<T>;
  const T* e = s.exps_of_class(c);
  size_t i = 0;
  const auto store_until = [&](size_t end) XENTROPY_INLINE_LAMBDA {
    for (; i + L <= end; i += L) store(out + i, s.rows.finisher(i)(load(e + i)));
    if (i < end) store_first(out + i, s.rows.finisher(i)(load(e + i)), end - i);
    i = end;
  };
  if (kStreamed) {
    const size_t head = to_line(out);
    if (head) store_until(head < n ? head : n);
    for (; i + kLine<T> <= n; i += kLine<T>) {
      for (size_t q = i; q < i + kLine<T>; q += L) stream(out + q, s.rows.finisher(q)(load(e + q)));
    }
  }
  store_until(n);
}

// Bytes that prefetches are ahead of the reads, along the classes of the segment and on to the next
// segment.
constexpr size_t kColumnsAhead = 8 << 10;

// kScaled: logit_scale is not 1. kGradient: compute the gradient too. kStreamed: non-temporal
// stores.
template <class T, bool kScaled, bool kGradient, bool kStreamed>
class ColumnPipeline {
 public:
  ColumnPipeline(const Terms& t, const Block<T>& b, Arena& arena)
      : t_(t), b_(b), exps_(t, b, arena) {}

  void run() {
    // Segments of equal length, a multiple of whole cache lines of the gradient.
    const size_t count = (b_.rows + exps_.segment().width - 1) / exps_.segment().width;
    const size_t each = (b_.rows + count - 1) / count;
    length_ = (each + kLine<T> - 1) / kLine<T> * kLine<T>;
    Span before = {0, 0};
    do {
      const size_t begin = before.begin + before.n;
      const Span now = {begin, length_of(begin)};
      if (exps_.segment().start(now.begin, now.n)) {
        exps_.probe();
        pass(before, now);
        exps_.check();
        settle();
      } else {
        pass(before, {0, 0});
        exps_.segment().blank();
      }
      before = now;
    } while (before.begin + before.n < b_.rows);
    pass(before, {0, 0});
  }

 private:
  // The rows of the segment at `begin`. If all classes of the gradient have the same alignment, the
  // first segment is shortened so that the others start at a cache line.
  size_t length_of(size_t begin) const {
    size_t n = length_;
    if (kStreamed && begin == 0 && b_.gradient_class_stride % ptrdiff_t(kLine<T>) == 0) {
      n -= (kLine<T> - to_line(b_.gradient)) % kLine<T>;
    }
    return n < b_.rows - begin ? n : b_.rows - begin;
  }

  // Step 4.
  void settle() {
    Segment<T>& s = exps_.segment();
    if (!losses_and_factors<kGradient>(t_, s.differ, s.rows, s.n)) {
      for (size_t i = 0; i < s.n; ++i) finish_or_fall_back(s, i);
      return;
    }
    __builtin_memcpy(b_.loss + s.begin, s.rows.loss, s.n * sizeof(double));
    for (size_t i = 0; kGradient && i < s.n; ++i) s.exp_of_target(i) = s.rows.target_entry[i];
  }

  void pass(Span before, Span now) {
    size_t c = 0;
    for (; c + kClassesAtOnce <= t_.classes; c += kClassesAtOnce) {
      step<kClassesAtOnce>(c, before, now);
    }
    for (; c < t_.classes; ++c) step<1>(c, before, now);
  }

  // Step 2 for kClasses classes from c on. Stores and exps alternate line by line: a burst of
  // stores would not overlap with arithmetic.
  template <size_t kClasses>
  XENTROPY_INLINE_MEMBER void step(size_t c, Span before, Span now) {
    if (now.n) prefetch<kClasses>(c, now);
    if (!kGradient) return exps_.template exps_of<kClasses>(c, 0, now.n);
    const ptrdiff_t stride = b_.gradient_class_stride;
    T* out = b_.gradient + ptrdiff_t(c) * stride + before.begin;
    if (before.n != now.n || now.n % kLine<T> != 0 || (kStreamed && !whole_lines(out))) {
      for (size_t q = 0; q < kClasses; ++q) {
        store_class<kStreamed>(exps_.segment(), c + q, before.n, out + ptrdiff_t(q) * stride);
      }
      return exps_.template exps_of<kClasses>(c, 0, now.n);
    }
    const T* e = exps_.segment().exps_of_class(c);
    const size_t n = now.n, width = exps_.segment().width;
    for (size_t i = 0; i < n; i += kLine<T>) {
      for (size_t v = i; v < i + kLine<T>; v += kLanes<T>) {
        const auto finish = exps_.segment().rows.finisher(v);
        for (size_t q = 0; q < kClasses; ++q) {
          put<kStreamed>(out + ptrdiff_t(q) * stride + v, finish(load(e + q * width + v)));
        }
      }
      exps_.template exps_of<kClasses>(c, i, kLine<T>);
    }
  }

  bool whole_lines(const T* out) const {
    return (reinterpret_cast<uintptr_t>(out) % kLineBytes |
            size_t(b_.gradient_class_stride) % kLine<T>) == 0;
  }

  // Prefetches the logits kColumnsAhead bytes after those of the kClasses classes from c on.
  template <size_t kClasses>
  XENTROPY_INLINE_MEMBER void prefetch(size_t c, Span now) const {
    size_t ahead = c + kColumnsAhead / sizeof(T) / length_;
    const T* x = b_.logits + now.begin + ahead / t_.classes * length_;
    ahead %= t_.classes;
    for (size_t q = 0; q < kClasses; ++q) {
      const T* line = x + ptrdiff_t(ahead) * b_.logits_class_stride;
      for (size_t i = 0; i < now.n; i += kLine<T>) prefetch_l2(line + i);
      if (++ahead == t_.classes) {
        ahead = 0;
        x += length_;
      }
    }
  }

  const Terms& t_;
  const Block<T>& b_;
  size_t length_ = 0;
  SegmentExps<T, kScaled, kGradient> exps_;
};

template <class T>
size_t columns_bytes(size_t classes, bool gradient) {
  return bytes_of<ColumnWorkspace<T>>(classes, gradient);
}

template <class T>
void columns(const Terms& t, const Block<T>& b, char* workspace, bool streamed) {
  Arena arena = {workspace, 0};
  with_scaled(t.logit_scale, [&](auto scaled) {
    if (b.gradient == nullptr) {
      ColumnPipeline<T, scaled.value, false, false>(t, b, arena).run();
    } else if (streamed) {
      ColumnPipeline<T, scaled.value, true, true>(t, b, arena).run();
      stream_fence();
    } else {
      ColumnPipeline<T, scaled.value, true, false>(t, b, arena).run();
    }
  });
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
