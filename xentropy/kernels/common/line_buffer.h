// The cache line where one piece of streamed output ends and the next begins. A partial line that
// is streamed costs a whole one, so its elements wait here until it is full.
#pragma once
#include "simd/vector16.h"

namespace xentropy {
namespace XENTROPY_TIER {

template <class S>
class LineBuffer {
 public:
  // What comes next goes to `out`. Elsewhere than before: what waits is written first.
  void go_on_at(S* out) {
    if (out == line_ + filled_) return;
    flush();
    filled_ = first_ = reinterpret_cast<uintptr_t>(out) % kLineBytes / sizeof(S);
    line_ = out - filled_;
  }

  bool empty() const { return filled_ == 0; }
  size_t room() const { return kLine<S> - filled_; }

  // fill(p) writes n <= room() elements to p, or whole vectors of them.
  template <class Fill>
  XENTROPY_INLINE_MEMBER void append(size_t n, const Fill& fill) {
    fill(waiting_ + filled_);
    filled_ += n;
    if (filled_ == kLine<S>) complete();
  }

  // Writes what waits for the rest of its line.
  void flush() {
    for (size_t i = first_; i < filled_; ++i) line_[i] = waiting_[i];
    first_ = filled_ = 0;
  }

 private:
  void complete() {
    if (first_ != 0) {
      flush();
    } else {
      stream_line(line_, [&](size_t q) XENTROPY_INLINE_LAMBDA { return load(waiting_ + q); });
    }
    line_ += kLine<S>;
    first_ = filled_ = 0;
  }

  S* line_ = nullptr;              // the line that waits to be filled
  size_t first_ = 0, filled_ = 0;  // its valid elements
  alignas(kLineBytes) S waiting_[2 * kLine<S>];
};

}  // namespace XENTROPY_TIER
}  // namespace xentropy
