// The cache line in which one piece of streamed output ends and the next begins. A non-temporal
// store of a partial line costs as much as a whole one, so its elements are buffered here until the
// line is full. It is streamed when the buffer is needed again: a load of the line right after the
// stores of its two pieces would wait until both, and all stores before them, have reached the
// cache.
#pragma once
#include "simd/vector16.h"

namespace xentropy {
namespace XENTROPY_TIER {

template <class S>
class LineBuffer {
 public:
  // The next elements go to `out`. If that is not where the last ones ended, the buffer is flushed.
  void continue_at(S* out) {
    if (filled_ == kLine<S>) complete();
    if (out == line_ + filled_) return;
    flush();
    filled_ = first_ = reinterpret_cast<uintptr_t>(out) % kLineBytes / sizeof(S);
    line_ = out - filled_;
  }

  bool empty() const { return filled_ % kLine<S> == 0; }
  size_t room() const { return kLine<S> - filled_; }

  // fill(p) writes n <= room() elements to p, rounded up to whole vectors.
  template <class Fill>
  XENTROPY_INLINE_MEMBER void append(size_t n, const Fill& fill) {
    fill(buffer_ + filled_);
    filled_ += n;
  }

  // Writes the buffered elements with regular stores.
  void flush() {
    for (size_t i = first_; i < filled_; ++i) line_[i] = buffer_[i];
    first_ = filled_ = 0;
  }

 private:
  void complete() {
    if (first_ != 0) {
      flush();
    } else {
      stream_line(line_, [&](size_t q) XENTROPY_INLINE_LAMBDA { return load(buffer_ + q); });
    }
    line_ += kLine<S>;
    first_ = filled_ = 0;
  }

  S* line_ = nullptr;              // the line in memory
  size_t first_ = 0, filled_ = 0;  // the buffered elements are [first_, filled_)
  alignas(kLineBytes) S buffer_[2 * kLine<S>];
};

}  // namespace XENTROPY_TIER
}  // namespace xentropy
