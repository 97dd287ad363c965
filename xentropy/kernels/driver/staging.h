// Rows for a kernel, in blocks: read in place, or staged, that is, gathered into scratch first.
#pragma once
#include "arena.h"
#include "driver/calls.h"
#include "driver/gather.h"

namespace xentropy {

constexpr size_t kBlockRows = 4096;  // the largest number of rows of one kernel call

// Staged rows stay in the L2 cache. But where the classes of a row are far apart, up to 16 adjacent
// rows are gathered together, to use more of every cache line.
constexpr size_t kScratchElements = size_t(1) << 15;
constexpr size_t kMinScratchRows = 16;

static inline size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

static inline ptrdiff_t magnitude(ptrdiff_t stride) { return stride < 0 ? -stride : stride; }

static inline constexpr DType dtype_of(F16) { return kF16; }
static inline constexpr DType dtype_of(BF16) { return kBF16; }
static inline constexpr DType dtype_of(float) { return kF32; }
static inline constexpr DType dtype_of(double) { return kF64; }
template <class S>
constexpr DType kNative = dtype_of(S());

// Whether a kernel can read these rows, stored as T, in place.
template <class T>
static inline bool in_place_rows(const Layout& a) {
  if (a.dtype != kNative<T> || a.swapped) return false;
  if (a.classes.ndim > 1 || (a.classes.ndim == 1 && a.classes.step() != sizeof(T))) return false;
  ptrdiff_t all = ptrdiff_t(reinterpret_cast<uintptr_t>(a.data));
  for (int d = 0; d < a.rows.ndim; ++d) all |= a.rows.stride[d];
  return all % ptrdiff_t(sizeof(T)) == 0;
}

// Whether the column kernel processes these rows: those that are closer together than the classes
// of one row, at any address, because the bits must not depend on it. With more classes than
// kMaxColumnClasses its scratch would exceed the cache.
constexpr size_t kMaxColumnClasses = size_t(1) << 16;
template <class T>
static inline bool are_columns(const Layout& a) {
  const ptrdiff_t step = a.classes.ndim == 1 ? magnitude(a.classes.step()) : 0;
  const ptrdiff_t element = a.dtype == kF64 ? 8 : a.dtype == kF32 ? 4 : 2;
  return a.rows.nearest < step && step != element && a.classes.size() <= kMaxColumnClasses;
}

// Whether the column kernel can read these rows in place. Short runs of rows are staged, because
// they would leave lanes unused.
constexpr size_t kMinColumnRun = 16;
template <class T>
static inline bool in_place_columns(const Layout& a) {
  if (a.dtype != kNative<T> || a.swapped || a.classes.ndim > 1) return false;
  if (a.rows.step() != sizeof(T) || a.rows.run() < kMinColumnRun) return false;
  ptrdiff_t all = ptrdiff_t(reinterpret_cast<uintptr_t>(a.data)) | a.classes.step();
  for (int d = 0; d < a.rows.ndim; ++d) all |= a.rows.stride[d];
  return all % ptrdiff_t(sizeof(T)) == 0;
}

// Whether rows are closer together in memory than the classes of a row.
static inline bool scattered(const Layout& a) {
  return a.data && magnitude(a.rows.step()) < magnitude(a.classes.step());
}

// The number of rows from r on that have one stride.
static inline size_t run_left(const Layout& a, size_t r) { return a.rows.run() - r % a.rows.run(); }

// Rows per block with staged arrays.
static inline size_t staged_rows(size_t classes, bool any_scattered) {
  const size_t least = any_scattered ? kMinScratchRows : 1, fitting = kScratchElements / classes;
  return smaller(kBlockRows, fitting > least ? fitting : least);
}

// Rows per block that is staged by columns: whole cache lines of every type.
static inline size_t staged_columns(size_t classes) {
  const size_t fitting = kScratchElements / classes / 16 * 16;
  return fitting < 16 ? 16 : smaller(fitting, 512);
}

static inline bool is_half_row(const Layout& a) {
  const bool half = (a.dtype == kF16 || a.dtype == kBF16) && !a.swapped;
  return half && a.classes.ndim == 1 && a.classes.step() == 2;
}

template <class T>
static inline void copy_rows(const Layout& a, size_t row, size_t n, T* to) {
  const size_t C = a.classes.size();
  for (size_t i = 0; i < n; ++i) {
    __builtin_memcpy(to + i * C, a.data + a.rows.offset(row + i), C * sizeof(T));
  }
}

// 16-bit rows with contiguous classes are converted by the vector code of the tier, all other
// layouts element by element.
static inline void gather_rows(const Tier&, const Layout& a, size_t row, size_t n, double* to) {
  if (!in_place_rows<double>(a)) return gather(a, row, n, to);
  copy_rows(a, row, n, to);
}
static inline void gather_rows(const Tier& tier, const Layout& a, size_t row, size_t n, float* to) {
  if (in_place_rows<float>(a)) return copy_rows(a, row, n, to);
  if (!is_half_row(a)) return gather(a, row, n, to);
  const Widen widen = a.dtype == kF16 ? tier.f16.widen : tier.bf16.widen;
  const size_t C = a.classes.size();
  for (size_t i = 0; i < n; ++i) widen(a.data + a.rows.offset(row + i), C, to + i * C);
}

static inline void scatter_rows(const Tier&, const double* from, const Layout& a, size_t row,
                                size_t n) {
  scatter(from, a, row, n);
}
static inline void scatter_rows(const Tier& tier, const float* from, const Layout& a, size_t row,
                                size_t n) {
  if (!is_half_row(a)) return scatter(from, a, row, n);
  const Narrow narrow = a.dtype == kF16 ? tier.f16.narrow : tier.bf16.narrow;
  const size_t C = a.classes.size();
  for (size_t i = 0; i < n; ++i) narrow(from + i * C, C, a.data + a.rows.offset(row + i));
}

// The rows [row, row + n) by columns: class c at to + c * stride. Adjacent 16-bit rows are
// converted by the vector code of the tier.
static inline bool is_half_column(const Layout& a) {
  const bool half = (a.dtype == kF16 || a.dtype == kBF16) && !a.swapped;
  return half && a.classes.ndim == 1 && a.rows.step() == 2;
}
static inline void gather_columns(const Tier&, const Layout& a, size_t row, size_t n, double* to,
                                  size_t stride) {
  gather(a, row, n, to, 1, stride);
}
static inline void gather_columns(const Tier& tier, const Layout& a, size_t row, size_t n,
                                  float* to, size_t stride) {
  if (!is_half_column(a)) return gather(a, row, n, to, 1, stride);
  const Widen widen = a.dtype == kF16 ? tier.f16.widen : tier.bf16.widen;
  for_pieces(a, row, n, [&](const char* p, size_t r, size_t m, size_t c, size_t k) {
    for (size_t j = 0; j < k; ++j, p += a.classes.step()) widen(p, m, to + (c + j) * stride + r);
  });
}
static inline void scatter_columns(const Tier&, const double* from, size_t stride, const Layout& a,
                                   size_t row, size_t n) {
  scatter(from, 1, stride, a, row, n);
}
static inline void scatter_columns(const Tier& tier, const float* from, size_t stride,
                                   const Layout& a, size_t row, size_t n) {
  if (!is_half_column(a)) return scatter(from, 1, stride, a, row, n);
  const Narrow narrow = a.dtype == kF16 ? tier.f16.narrow : tier.bf16.narrow;
  for_pieces(a, row, n, [&](char* p, size_t r, size_t m, size_t c, size_t k) {
    for (size_t j = 0; j < k; ++j, p += a.classes.step()) narrow(from + (c + j) * stride + r, m, p);
  });
}

// As gather_rows, but does not read ignored rows.
template <class T>
static void gather_counted(const Tier& tier, const Layout& a, size_t row, size_t n,
                           const int64_t* labels, T* to) {
  const size_t C = a.classes.size();
  for (size_t i = 0, end; i < n; i = end) {
    for (end = i; end < n && labels[end] != kIgnored; ++end) {
    }
    if (end > i) gather_rows(tier, a, row + i, end - i, to + i * C);
    end += end == i;
  }
}

}  // namespace xentropy
