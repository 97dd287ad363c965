// One call of the softmax family, chunk by chunk.
#include <math.h>

#include "staging.h"

namespace xentropy {
namespace {

template <class T>
struct SoftmaxWorkspace {
  bool x_direct, out_direct;
  size_t rows;
  T *kernel, *block;
  size_t bytes;

  SoftmaxWorkspace(const SoftmaxCall& c, char* scratch) {
    x_direct = in_place_rows<T>(c.x);
    out_direct = !c.out.data || in_place_rows<T>(c.out);
    rows = smaller(staged_rows(c.classes, scattered(c.x) || scattered(c.out)),
                   smaller(c.rows, chunk_rows(c.rows, c.classes)));
    Arena arena(scratch);
    kernel = arena.take<T>(scratch_elements(c.classes, 0));
    block = x_direct && out_direct ? nullptr : arena.take<T>(rows * c.classes);
    bytes = arena.used();
  }
};

// -sum_c t_c log t_c of probabilities, with 0 log 0 = 0. One library logarithm an element.
template <class T>
double target_entropy(const T* t, size_t classes) {
  double sum = 0;
  for (size_t c = 0; c < classes; ++c) {
    if (t[c] != 0) sum -= double(t[c]) * log(double(t[c]));
  }
  return sum;
}

template <class T>
void softmax_chunk(const Tier& tier, const SoftmaxCall& c, size_t begin, size_t end,
                   char* scratch) {
  const SoftmaxWorkspace<T> w(c, scratch);
  const SoftmaxKernel<T> kernel = kernels_of<T>(tier).softmax;
  for (size_t row = begin; row < end; row += w.rows) {
    const size_t n = smaller(w.rows, end - row);
    if (!w.x_direct) gather_rows(tier, c.x, row, n, w.block);
    for (size_t i = 0; i < n; ++i) {
      T* scratch_row = w.block ? w.block + i * c.classes : nullptr;
      const T* x = w.x_direct ? reinterpret_cast<const T*>(c.x.data + c.x.rows.offset(row + i))
                              : scratch_row;
      T* out = c.out.data && w.out_direct
                   ? reinterpret_cast<T*>(c.out.data + c.out.rows.offset(row + i))
                   : scratch_row;
      double value = 0;
      if (c.what == Result::kTargetEntropy) {
        value = target_entropy(x, c.classes);
      } else {
        kernel(c.what, x, c.classes, out, w.kernel, &value);
      }
      if (c.values) static_cast<T*>(c.values)[row + i] = T(value * c.unit);
    }
    if (c.out.data && !w.out_direct) scatter_rows(tier, w.block, c.out, row, n);
  }
}

}  // namespace

size_t scratch_bytes(const SoftmaxCall& c) {
  return c.float64 ? SoftmaxWorkspace<double>(c, nullptr).bytes
                   : SoftmaxWorkspace<float>(c, nullptr).bytes;
}

void run_chunk(const Tier& tier, const SoftmaxCall& c, size_t begin, size_t end, char* scratch) {
  return c.float64 ? softmax_chunk<double>(tier, c, begin, end, scratch)
                   : softmax_chunk<float>(tier, c, begin, end, scratch);
}

}  // namespace xentropy
