// The gradient of long rows whose log-sum-exp is known, one row at a time.
//
// Cost: one exp per element, each element read once and written once: 8 bytes in float32. The exp
// is made where the element is written; no row is kept in scratch. The numbers of rows are settled
// kRowsAtOnce at a time. The classes selected overwrite what was written, after all rows of the
// block and the fence behind streamed stores. A cache line that two adjacent rows share is written
// by regular stores.
#pragma once
#include "common/lse_gradient.h"

namespace xentropy {
namespace XENTROPY_TIER {

template <class S>
void fill_row(S* out, size_t n, Arithmetic<S> value) {
  for (size_t c = 0; c < n; ++c) set_value(out + c, value);
}

// out[i] = map(x[i]) for i < n, a vector at a time; x may be out.
template <class S, class Map>
__attribute__((noinline)) void map_vectors(const S* x, size_t n, const Map& map, S* out) {
  typedef Arithmetic<S> T;
  constexpr size_t L = kLanes<T>;
  size_t i = 0;
  for (; i + L <= n; i += L) store(out + i, map(load(x + i)));
  if (i < n) store_first(out + i, map(load_first(x + i, n - i, Vec<T>{})), n - i);
}

// The same of a row, which the caches do not hold; whole cache lines are `streamed`.
template <class S, class Map>
void map_row(const S* x, size_t n, const Map& map, S* out, bool streamed) {
  typedef Arithmetic<S> T;
  constexpr size_t L = kLanes<T>, K = kLine<S>, kAhead = (1 << 10) / sizeof(S);
  const size_t past = reinterpret_cast<uintptr_t>(out) % kLineBytes / sizeof(S);
  size_t i = streamed && past ? K - past : 0;
  if (i > n) i = n;
  if (i) map_vectors(x, i, map, out);
  for (; i + K <= n; i += K) {
    prefetch_read(x + i);
    if (!streamed) prefetch_write(out + i + kAhead);
    Vec<T> v[K / L];
    for (size_t q = 0; q < K / L; ++q) v[q] = map(load(x + i + q * L));
    const auto line = [&](size_t q) XENTROPY_INLINE_LAMBDA { return v[q / L]; };
    if (streamed) {
      stream_line(out + i, line);
    } else {
      store_line(out + i, line);
    }
  }
  if (i < n) map_vectors(x + i, n - i, map, out + i);
}

// Row r, which is row i of s, but for the classes selected.
template <bool kPlain, class S, class T = Arithmetic<S>>
void lse_gradient_row(const LseGradientBlock<S>& b, size_t r, const LseRows<T>& s, size_t i,
                      double* chunks, bool streamed) {
  S* out = b.gradient + ptrdiff_t(r) * b.gradient_stride;
  if (s.kind[i] == kFilled) return fill_row(out, b.classes, s.a[i]);
  if (s.kind[i] != kMapped) return lse_gradient_in_float64(b, r, s, i, chunks, out);
  const LseGradientMap<T, kPlain> map(
      s, b.of_rows.logit_scale, [=](const T* p) XENTROPY_INLINE_LAMBDA { return splat(p[i]); });
  map_row(b.x + ptrdiff_t(r) * b.x_stride, b.classes, map, out, streamed);
}

template <class T>
struct LseGradientScratch {
  double* chunks;
  LseRows<T> rows;
  explicit LseGradientScratch(Arena& arena) : chunks(take_chunks<double>(arena)), rows(arena) {}
};

template <class S>
size_t lse_gradient_bytes(size_t) {
  return bytes_of<LseGradientScratch<Arithmetic<S>>>();
}

constexpr size_t kRowsAtOnce = 16;

template <class S>
void lse_gradient(const LseGradientBlock<S>& b, char* workspace, bool streamed) {
  Arena arena = {workspace, 0};
  const LseGradientScratch<Arithmetic<S>> s(arena);
  for (size_t first = 0; first < b.rows; first += kRowsAtOnce) {
    const size_t left = b.rows - first, n = left < kRowsAtOnce ? left : kRowsAtOnce;
    const LseSummary any_of = settle_lse_rows(b, first, n, s.rows);
    for (size_t i = 0; i < n; ++i) {
      if (b.of_rows.logit_scale == 1 && !any_of.on_log) {
        lse_gradient_row<true>(b, first + i, s.rows, i, s.chunks, streamed);
      } else {
        lse_gradient_row<false>(b, first + i, s.rows, i, s.chunks, streamed);
      }
    }
  }
  if (streamed) stream_fence();
  for (size_t r = 0; r < b.rows; ++r) {
    put_selected(b, r, b.gradient + ptrdiff_t(r) * b.gradient_stride);
  }
}

}  // namespace XENTROPY_TIER
}  // namespace xentropy
