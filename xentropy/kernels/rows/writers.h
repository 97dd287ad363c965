// Two ways for a row to become gradient in memory, in pieces, in order: each element of the row
// goes through `Map`. The row is scratch (exps), or one of the logits (log_softmax).
//
// StreamedStores writes whole cache lines past the caches (a normal store first reads the
// line it overwrites: 3 bytes moved for 2). Lines that straddle two adjacent rows are
// joined in a small buffer, because a partial line streamed costs a whole one.
// RegularStores is for results that stay in cache, for rows in place, and for fresh pages. It
// prefetches what it will overwrite, 1 KB ahead: a long row in place has left the L1 cache
// since it was read (20 % at 4,000 classes and more).
#pragma once
#include "common/line_buffer.h"
#include "common/settle.h"

namespace xentropy {
namespace XENTROPY_TIER {

// Of the row that is read next: 8 KB ahead into L2, and into L1 what comes next.
template <class S>
XENTROPY_INLINE void prefetch_next(const S* x) {
  prefetch_far(x + (8 << 10) / sizeof(S));
  prefetch_near(x);
}

// The n elements left of a row: a vector of them at most, filled up with 0.
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

  // Writes e[..end) of the row at least; `next` is the row that will be read meanwhile.
  XENTROPY_INLINE_MEMBER void advance(const T* e, size_t end, const S* next) {
    constexpr size_t L = kLanes<T>;
    size_t i = done_;
    for (; i + kLine<S> <= end; i += kLine<S>) {
      prefetch_next(next + i);
      prefetch_write(out_ + i + kWriteAhead<S>);
      store_line(out_ + i, [&](size_t q) XENTROPY_INLINE_LAMBDA { return map_(load(e + i + q)); });
    }
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
    line_.go_on_at(out);
    out_ = out;
    classes_ = classes;
    done_ = 0;
    map_ = map;
  }

  // As RegularStores; goes on to the end of a cache line, beyond `end` if need be.
  XENTROPY_INLINE_MEMBER void advance(const T* e, size_t end, const S* next) {
    if (done_ == classes_) return;
    if (!line_.empty()) put(e, classes_ < line_.room() ? classes_ : line_.room());
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
    line_.go_on_at(out_ + i);
    put(e + i, classes_ - i);
  }

  void flush() { line_.flush(); }

 private:
  // The next n elements of the row, into the line that waits.
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
