// The memory layout of an array: rows over any number of dimensions in C order, and in each row
// classes over any number of dimensions. Strides are in bytes.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace xentropy {

constexpr int kMaxDims = 64;  // as in NumPy

enum DType { kF16, kBF16, kF32, kF64, kI8, kI16, kI32, kI64, kU8, kU16, kU32, kU64 };

struct Axes {
  int ndim;
  ptrdiff_t shape[kMaxDims];
  ptrdiff_t stride[kMaxDims];
  ptrdiff_t nearest;  // the smallest |stride|, including dimensions of length 1

  size_t size() const {
    size_t n = 1;
    for (int d = 0; d < ndim; ++d) n *= size_t(shape[d]);
    return n;
  }
  // The length and stride of the innermost dimension.
  size_t run() const { return ndim ? size_t(shape[ndim - 1]) : 1; }
  ptrdiff_t step() const { return ndim ? stride[ndim - 1] : 0; }

  ptrdiff_t offset(size_t index) const {
    ptrdiff_t offset = 0;
    for (int d = ndim - 1; d >= 0; --d) {
      offset += ptrdiff_t(index % size_t(shape[d])) * stride[d];
      index /= size_t(shape[d]);
    }
    return offset;
  }
};

struct Layout {
  char* data;  // null: no such array
  DType dtype;
  bool swapped;  // not in native byte order
  Axes rows, classes;
};

}  // namespace xentropy
