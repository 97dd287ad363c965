// The softcap around a kernel: a block of rows is capped into scratch, the kernel overwrites it
// with the gradient in the capped logits, and that leaves for memory times the slopes.
//
// Cost: per element one tanh, and in the cache two reads and two writes (the loss alone: one each).
// Memory is read and written as without the softcap. Kernels and their choice do not know of it.
#pragma once
#include "driver/staging.h"

namespace xentropy {

// With x = logit_scale * logits the softcap is c tanh(x / c) = logit_scale * (k tanh(logits / k)),
// k = c / logit_scale: the logits are capped first, at k, and the kernels scale them.
static inline Softcap cap_of(const CrossEntropyCall& c) {
  return {c.softcap / c.terms.logit_scale, c.terms.logit_scale / c.softcap};
}

// Calls visit(S()) for the type of the elements of `a` and returns true if its kernels compute in
// T, and in_place(S()) says that they can access `a`.
template <class T, class InPlace, class Visit>
static inline bool with_stored(const Layout& a, const InPlace& in_place, const Visit& visit) {
  const auto served = [&](auto s) {
    if (!in_place(s)) return false;
    visit(s);
    return true;
  };
  if constexpr (sizeof(T) == 4) {
    if (a.dtype == kF16) return served(F16());
    if (a.dtype == kBF16) return served(BF16());
  }
  return served(T());
}

// Whether rows can be capped from where they lie, or written to it.
template <class T>
static inline bool in_place_elements(const Layout& a) {
  return with_stored<T>(a, [&](auto s) { return in_place_rows<decltype(s)>(a); }, [](auto) {});
}

// Calls each(begin, end) for the runs of rows that count.
template <class Each>
static inline void for_counted(const int64_t* labels, size_t n, const Each& each) {
  for (size_t i = 0, end; i < n; i = end + 1) {
    for (end = i; end < n && labels[end] != kIgnored; ++end) {
    }
    if (end > i) each(i, end);
  }
}

// Calls each(first row, rows) for the pieces of [begin, end) in which rows follow upon one another.
template <class Each>
static inline void for_adjacent(const Layout& a, size_t size, size_t row, size_t begin, size_t end,
                                const Each& each) {
  for (size_t i = begin, n; i < end; i += n) {
    const bool adjacent = a.rows.step() == ptrdiff_t(size);
    n = adjacent ? smaller(end - i, run_left(a, row + i)) : 1;
    each(i, n);
  }
}

// Caps the rows [row, row + n) that count to contiguous rows at `to`. The slopes of others are 0:
// their gradient is 0, whatever they hold. slope: null, or scratch like `to`.
template <class T>
static void cap_rows(const Tier& tier, const CrossEntropyCall& c, size_t row, size_t n,
                     const int64_t* labels, T* to, T* slope) {
  const Layout& a = c.logits;
  const Softcap cap = cap_of(c);
  const size_t C = c.terms.classes;
  const auto slope_at = [&](size_t i) { return slope ? slope + i * C : nullptr; };
  for (size_t i = 0; slope && i < n; ++i) {
    if (labels[i] == kIgnored) __builtin_memset(slope_at(i), 0, C * sizeof(T));
  }
  const auto in_place = [&](auto s) { return in_place_rows<decltype(s)>(a); };
  const bool capped = with_stored<T>(a, in_place, [&](auto s) {
    typedef decltype(s) S;
    for_counted(labels, n, [&](size_t begin, size_t end) {
      for_adjacent(a, C * sizeof(S), row, begin, end, [&](size_t i, size_t m) {
        const S* x = reinterpret_cast<const S*>(a.data + a.rows.offset(row + i));
        kernels_of(tier, S()).softcap.cap(cap, x, m * C, to + i * C, slope_at(i));
      });
    });
  });
  if (capped) return;
  gather_counted(tier, a, row, n, labels, to);
  for_counted(labels, n, [&](size_t i, size_t end) {
    kernels_of(tier, T()).softcap.cap(cap, to + i * C, (end - i) * C, to + i * C, slope_at(i));
  });
}

// The same by columns: class c at to + c * stride.
template <class T>
static void cap_columns(const Tier& tier, const CrossEntropyCall& c, size_t row, size_t n,
                        const int64_t* labels, T* to, T* slope, size_t stride) {
  const Layout& a = c.logits;
  const Softcap cap = cap_of(c);
  const size_t C = c.terms.classes;
  bool all = true;
  for (size_t i = 0; i < n; ++i) all &= labels[i] != kIgnored;
  const auto cap_class = [&](size_t j, const auto* x) {
    T* s = slope ? slope + j * stride : nullptr;
    kernels_of(tier, *x).softcap.cap(cap, x, n, to + j * stride, s);
    for (size_t i = 0; s && !all && i < n; ++i) s[i] = labels[i] == kIgnored ? 0 : s[i];
  };
  const auto in_place = [&](auto s) {
    return in_place_columns<decltype(s)>(a) && run_left(a, row) >= n;
  };
  const bool capped = with_stored<T>(a, in_place, [&](auto s) {
    const char* x = a.data + a.rows.offset(row);
    for (size_t j = 0; j < C; ++j, x += a.classes.step()) {
      cap_class(j, reinterpret_cast<const decltype(s)*>(x));
    }
  });
  if (capped) return;
  gather_columns(tier, a, row, n, to, stride);
  for (size_t j = 0; j < C; ++j) cap_class(j, static_cast<const T*>(to + j * stride));
}

// Writes the gradient of the rows [row, row + n), given in the capped logits in contiguous rows.
template <class T>
static void uncap_rows(const Tier& tier, const CrossEntropyCall& c, size_t row, size_t n,
                       T* gradient, const T* slope) {
  const Layout& a = c.gradient;
  const size_t C = c.terms.classes;
  const auto in_place = [&](auto s) { return in_place_rows<decltype(s)>(a); };
  const bool written = with_stored<T>(a, in_place, [&](auto s) {
    typedef decltype(s) S;
    for_adjacent(a, C * sizeof(S), row, 0, n, [&](size_t i, size_t m) {
      S* to = reinterpret_cast<S*>(a.data + a.rows.offset(row + i));
      kernels_of(tier, S()).softcap.times_slope(gradient + i * C, slope + i * C, m * C, to,
                                                c.streamed);
    });
  });
  if (written) return;
  kernels_of(tier, T()).softcap.times_slope(gradient, slope, n * C, gradient, false);
  scatter_rows(tier, gradient, a, row, n);
}

// The same by columns.
template <class T>
static void uncap_columns(const Tier& tier, const CrossEntropyCall& c, size_t row, size_t n,
                          T* gradient, const T* slope, size_t stride) {
  const Layout& a = c.gradient;
  const size_t C = c.terms.classes;
  const auto in_place = [&](auto s) {
    return in_place_columns<decltype(s)>(a) && run_left(a, row) >= n;
  };
  const bool written = with_stored<T>(a, in_place, [&](auto s) {
    typedef decltype(s) S;
    char* to = a.data + a.rows.offset(row);
    for (size_t j = 0; j < C; ++j, to += a.classes.step()) {
      kernels_of(tier, S()).softcap.times_slope(gradient + j * stride, slope + j * stride, n,
                                                reinterpret_cast<S*>(to), c.streamed);
    }
  });
  if (written) return;
  for (size_t j = 0; j < C; ++j) {
    T* at = gradient + j * stride;
    kernels_of(tier, T()).softcap.times_slope(at, slope + j * stride, n, at, false);
  }
  scatter_columns(tier, gradient, stride, a, row, n);
}

}  // namespace xentropy
