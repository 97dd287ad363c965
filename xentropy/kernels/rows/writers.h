// Two classes that write the result of a row piece by piece, in order; each element goes through
// `Map`, a functor on vectors of T. The input is the scratch row (exps) or the logits
// (log_softmax).
//
// StreamedStores writes whole cache lines with non-temporal stores (a regular store first reads the
// line that it overwrites: 3 bytes moved instead of 2). A line that straddles two adjacent rows is
// assembled in a buffer, because a non-temporal store of a partial line costs as much as a whole
// one. What is read next is prefetched where such a line is, too: one miss a row would cost a
// tenth.
//
// RegularStores is for results that stay in cache, for rows in place, and for fresh pages. It
// prefetches the memory that it overwrites, 1 KB ahead: a long row in place has left the L1 cache
// since it was read (20 % at 4,000 classes and more).
#pragma once
#include "common/line_buffer.h"
#include "common/settle.h"

namespace xentropy {
namespace XENTROPY_TIER {

// Prefetches the row that is read next: 8 KB ahead into L2, and the current position into L1.
template <class S>
XENTROPY_INLINE void prefetch_next(const S* x) {
  prefetch_l2(x + (8 << 10) / sizeof(S));
  prefetch_l1(x);
}

// The next vector of a row of which n elements are left, padded with 0.
template <class T>
XENTROPY_INLINE Vec<T> load_rest(const T* p, size_t n) {
  return n >= kLanes<T> ? load(p) : load_first(p, n, Vec<T>{});
}

template <class S>
constexpr size_t kWriteAhead = (1 << 10) / sizeof(S);

template <class S, class Map>
class RegularStores {
  typedef Arithmetic<S> T;

 public:
  void begin_row(S* out, size_t, const Map& map) {
    out_ = out;
    done_ = 0;
    map_ = map;
  }

  // Writes the elements of the row up to `end`, from e. `next` is the row to prefetch.
  XENTROPY_INLINE_MEMBER void advance(const T* e, size_t end, const S* next) {
    constexpr size_t L = kLanes<T>;
    size_t i = done_;
    for (; i + kLine<S> <= end; i += kLine<S>) {
      prefetch_next(next + i);
      prefetch_write(out_ + i + kWriteAhead<S>);
      store_line(out_ + i, [&](size_t q) XENTROPY_INLINE_LAMBDA { return map_(load(e + i + q)); });
    }
    if (i < end) prefetch_next(next + i);
    for (; i + L <= end; i += L) store(out_ + i, map_(load(e + i)));
    if (i < end) store_first(out_ + i, map_(load_rest(e + i, end - i)), end - i);
    done_ = end;
  }

  void flush() {}

 private:
  S* out_ = nullptr;
  size_t done_ = 0;
  Map map_;
};

template <class S, class Map>
class StreamedStores {
  typedef Arithmetic<S> T;

 public:
  void begin_row(S* out, size_t classes, const Map& map) {
    line_.continue_at(out);
    out_ = out;
    classes_ = classes;
    done_ = 0;
    map_ = map;
  }

  // As in RegularStores, but continues beyond `end` to the end of a cache line.
  XENTROPY_INLINE_MEMBER void advance(const T* e, size_t end, const S* next) {
    if (done_ == classes_) return;
    if (!line_.empty()) {
      prefetch_next(next);
      put(e, classes_ < line_.room() ? classes_ : line_.room());
    }
    size_t i = done_;
    const size_t lines = end > i ? (end - i + kLine<S> - 1) / kLine<S> : 0;
    const bool to_the_end = end == classes_ || i + lines * kLine<S> > classes_;
    const size_t stop = to_the_end ? classes_ : i + lines * kLine<S>;
    for (; i + kLine<S> <= stop; i += kLine<S>) {
      prefetch_next(next + i);
      stream_line(out_ + i, [&](size_t q) XENTROPY_INLINE_LAMBDA { return map_(load(e + i + q)); });
    }
    done_ = i;
    if (i == classes_ || !to_the_end) return;
    line_.continue_at(out_ + i);
    prefetch_next(next + i);
    put(e + i, classes_ - i);
  }

  void flush() { line_.flush(); }

 private:
  // Moves the next n elements of the row into the line buffer.
  XENTROPY_INLINE_MEMBER void put(const T* e, size_t n) {
    line_.append(n, [&](S* to) XENTROPY_INLINE_LAMBDA {
      for (size_t q = 0; q < n; q += kLanes<T>) store(to + q, map_(load_rest(e + q, n - q)));
    });
    done_ += n;
  }

  S* out_ = nullptr;
  size_t classes_ = 0, done_ = 0;
  Map map_;
  LineBuffer<S> line_;
};

}  // namespace XENTROPY_TIER
}  // namespace xentropy
