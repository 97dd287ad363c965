// Conversion of arrays of any layout and dtype to and from contiguous rows in scratch.
//
// Cost: one more pass through the cache per element. The inner loop runs over rows or classes,
// whichever have the smaller stride, so that every cache line is used whole.
#pragma once
#include "half.h"
#include "driver/layout.h"

namespace xentropy {

static inline uint16_t swap_bytes(uint16_t v) { return __builtin_bswap16(v); }
static inline uint32_t swap_bytes(uint32_t v) { return __builtin_bswap32(v); }
static inline uint64_t swap_bytes(uint64_t v) { return __builtin_bswap64(v); }
static inline uint8_t swap_bytes(uint8_t v) { return v; }

template <class Bits>
static inline Bits read_bits(const char* p, bool swapped) {
  Bits v;
  __builtin_memcpy(&v, p, sizeof v);
  return swapped ? swap_bytes(v) : v;
}
template <class Bits>
static inline void write_bits(char* p, Bits v, bool swapped) {
  if (swapped) v = swap_bytes(v);
  __builtin_memcpy(p, &v, sizeof v);
}
template <class To, class From>
static inline To bit_cast(From v) {
  static_assert(sizeof(To) == sizeof(From), "as many bits");
  To out;
  __builtin_memcpy(&out, &v, sizeof out);
  return out;
}

// Reads and writes one element of a floating-point dtype.
struct ElementF16 {
  static double read(const char* p, bool s) { return widen_f16(read_bits<uint16_t>(p, s)); }
  static void write(char* p, double v, bool s) { write_bits(p, narrow_f16(float(v)), s); }
};
struct ElementBF16 {
  static double read(const char* p, bool s) { return widen_bf16(read_bits<uint16_t>(p, s)); }
  static void write(char* p, double v, bool s) { write_bits(p, narrow_bf16(float(v)), s); }
};
struct ElementF32 {
  static double read(const char* p, bool s) { return bit_cast<float>(read_bits<uint32_t>(p, s)); }
  static void write(char* p, double v, bool s) { write_bits(p, bits_of(float(v)), s); }
};
struct ElementF64 {
  static double read(const char* p, bool s) { return bit_cast<double>(read_bits<uint64_t>(p, s)); }
  static void write(char* p, double v, bool s) { write_bits(p, bit_cast<uint64_t>(v), s); }
};

// Calls visit(Element()) for the dtype of `a`: one instantiation for each.
template <class Visit>
static inline void for_element(const Layout& a, Visit visit) {
  switch (a.dtype) {
    case kF16:
      return visit(ElementF16());
    case kBF16:
      return visit(ElementBF16());
    case kF32:
      return visit(ElementF32());
    default:
      return visit(ElementF64());
  }
}

// Calls visit(address, first row, rows, first class, classes) for every piece in which rows and
// classes have one stride each.
template <class Visit>
static inline void for_pieces(const Layout& a, size_t row, size_t n, Visit visit) {
  const size_t run = a.classes.run(), classes = a.classes.size();
  for (size_t r = 0; r < n;) {
    const size_t left = a.rows.run() - (row + r) % a.rows.run();
    const size_t m = left < n - r ? left : n - r;
    char* start = a.data + a.rows.offset(row + r);
    for (size_t c = 0; c < classes; c += run) visit(start + a.classes.offset(c), r, m, c, run);
    r += m;
  }
}

// Calls visit(i, j) over m x n, with the index of smaller stride in the inner loop.
template <class Visit>
static inline void for_both(size_t m, ptrdiff_t stride_m, size_t n, ptrdiff_t stride_n,
                            Visit visit) {
  const bool m_inner =
      (stride_m < 0 ? -stride_m : stride_m) < (stride_n < 0 ? -stride_n : stride_n);
  if (m_inner) {
    for (size_t j = 0; j < n; ++j) {
      for (size_t i = 0; i < m; ++i) visit(i, j);
    }
  } else {
    for (size_t i = 0; i < m; ++i) {
      for (size_t j = 0; j < n; ++j) visit(i, j);
    }
  }
}

// One number per row, contiguous as float32 or float64: a simple loop.
template <class T>
static bool gather_numbers(const Layout& a, size_t row, size_t n, T* to) {
  const bool single = a.dtype == kF32 && a.rows.step() == 4;
  const bool adjacent = single || (a.dtype == kF64 && a.rows.step() == 8);
  if (!adjacent || a.swapped || a.rows.ndim != 1) return false;
  const char* p = a.data + a.rows.offset(row);
  if (single) {
    for (size_t i = 0; i < n; ++i)
      to[i] = T(bit_cast<float>(read_bits<uint32_t>(p + 4 * i, false)));
  } else {
    for (size_t i = 0; i < n; ++i)
      to[i] = T(bit_cast<double>(read_bits<uint64_t>(p + 8 * i, false)));
  }
  return true;
}

// Copies the rows [row, row + n) to `to`, with the strides given there.
template <class T>
static void gather(const Layout& a, size_t row, size_t n, T* to, size_t to_row, size_t to_class) {
  const ptrdiff_t dr = a.rows.step(), dc = a.classes.step();
  for_element(a, [&](auto element) {
    using Element = decltype(element);
    for_pieces(a, row, n, [&](const char* p, size_t r, size_t m, size_t c, size_t k) {
      T* start = to + r * to_row + c * to_class;
      for_both(m, dr, k, dc, [&](size_t i, size_t j) {
        start[i * to_row + j * to_class] =
            T(Element::read(p + ptrdiff_t(i) * dr + ptrdiff_t(j) * dc, a.swapped));
      });
    });
  });
}

// The same to contiguous rows.
template <class T>
static void gather(const Layout& a, size_t row, size_t n, T* to) {
  if (a.classes.ndim == 0 && gather_numbers(a, row, n, to)) return;
  const bool alike = a.classes.ndim == 0 && a.rows.ndim == 1 && a.rows.step() == 0;
  gather(a, row, alike ? 1 : n, to, a.classes.size(), 1);
  for (size_t i = 1; alike && i < n; ++i) to[i] = to[0];
}

// One number per row as float64: in place if possible, else gathered into scratch.
static inline const double* row_values(const Layout& a, size_t row, size_t n, double* scratch) {
  const char* p = a.data + a.rows.offset(row);
  const bool adjacent = a.rows.ndim == 1 && a.rows.step() == sizeof(double);
  if (a.dtype == kF64 && !a.swapped && adjacent && uintptr_t(p) % alignof(double) == 0) {
    return reinterpret_cast<const double*>(p);
  }
  gather(a, row, n, scratch);
  return scratch;
}

// Copies `from`, with the strides given, to the rows [row, row + n).
template <class T>
static void scatter(const T* from, size_t from_row, size_t from_class, const Layout& a, size_t row,
                    size_t n) {
  const ptrdiff_t dr = a.rows.step(), dc = a.classes.step();
  for_element(a, [&](auto element) {
    using Element = decltype(element);
    for_pieces(a, row, n, [&](char* p, size_t r, size_t m, size_t c, size_t k) {
      const T* start = from + r * from_row + c * from_class;
      for_both(m, dr, k, dc, [&](size_t i, size_t j) {
        Element::write(p + ptrdiff_t(i) * dr + ptrdiff_t(j) * dc,
                       double(start[i * from_row + j * from_class]), a.swapped);
      });
    });
  });
}
template <class T>
static void scatter(const T* from, const Layout& a, size_t row, size_t n) {
  scatter(from, a.classes.size(), 1, a, row, n);
}

// The integer at p as 64 bits: sign-extended, or zero-extended if unsigned.
static inline int64_t read_label(const Layout& a, const char* p) {
  switch (a.dtype) {
    case kI8:
      return int8_t(read_bits<uint8_t>(p, false));
    case kU8:
      return read_bits<uint8_t>(p, false);
    case kI16:
      return int16_t(read_bits<uint16_t>(p, a.swapped));
    case kU16:
      return read_bits<uint16_t>(p, a.swapped);
    case kI32:
      return int32_t(read_bits<uint32_t>(p, a.swapped));
    case kU32:
      return read_bits<uint32_t>(p, a.swapped);
    default:
      return int64_t(read_bits<uint64_t>(p, a.swapped));
  }
}

// Labels as 64 bits: in place if possible, else gathered into scratch.
static inline const int64_t* labels_of(const Layout& a, size_t row, size_t n, int64_t* scratch) {
  const ptrdiff_t step = a.rows.step();
  for (size_t r = 0, m; r < n; r += m) {
    const size_t left = a.rows.run() - (row + r) % a.rows.run();
    m = left < n - r ? left : n - r;
    const char* p = a.data + a.rows.offset(row + r);
    const bool wide = (a.dtype == kI64 || a.dtype == kU64) && step == 8 && !a.swapped;
    if (wide && m == n && uintptr_t(p) % alignof(int64_t) == 0) {
      return reinterpret_cast<const int64_t*>(p);
    }
    int64_t* to = scratch + r;
    if (a.dtype == kI32 && step == 4 && !a.swapped) {  // a simple loop for the common case
      for (size_t i = 0; i < m; ++i) to[i] = int32_t(read_bits<uint32_t>(p + 4 * i, false));
    } else {
      for (size_t i = 0; i < m; ++i) to[i] = read_label(a, p + ptrdiff_t(i) * step);
    }
  }
  return scratch;
}

}  // namespace xentropy
