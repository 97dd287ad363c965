// One call of the softmax family, chunk by chunk.
#include <math.h>

#include "driver/choose.h"
#include "driver/guard.h"

namespace xentropy {
namespace {

template <class T>
struct SoftmaxWorkspace {
  bool x_direct, out_direct;
  size_t rows;  // of a block
  SoftmaxKernel<T> kernel;
  GuardedMemory kernel_memory;
  T* block;
  double* value;

  SoftmaxWorkspace(const Tier& tier, const SoftmaxCall& c, Arena& arena) {
    const size_t C = c.classes;
    x_direct = is_direct<T>(c, c.x);
    out_direct = !c.out.data || is_direct<T>(c, c.out);
    rows = x_direct && out_direct ? kBlockRows : staged_rows(C, scattered(c.x) || scattered(c.out));
    rows = smaller(rows, smaller(c.rows, chunk_rows(c.rows, C)));
    kernel = choose_kernel<T>(tier, c);
    kernel_memory = GuardedMemory(kernel.workspace_bytes(c.what, C, rows), arena);
    block = x_direct && out_direct ? nullptr : take<T>(arena, rows * C);
    value = take<double>(arena, c.values ? rows : 0);
  }

  // The end of the block at r: its rows have one stride in every array that is accessed in place.
  size_t block_end(const SoftmaxCall& c, size_t r, size_t end) const {
    size_t n = smaller(rows, end - r);
    if (x_direct) n = smaller(n, run_left(c.x, r));
    if (c.out.data && out_direct) n = smaller(n, run_left(c.out, r));
    return r + n;
  }
};

// -sum_c t_c log t_c of probabilities, with 0 log 0 = 0. One library logarithm per element.
template <class T>
double target_entropy(const T* t, size_t classes) {
  double sum = 0;
  for (size_t c = 0; c < classes; ++c) {
    if (t[c] != 0) sum -= double(t[c]) * log(double(t[c]));
  }
  return sum;
}

// The block of the rows [row, row + n) for the kernel.
template <class T>
SoftmaxBlock<T> block_of(const Tier& tier, const SoftmaxCall& c, const SoftmaxWorkspace<T>& w,
                         size_t row, size_t n) {
  const ptrdiff_t staged = ptrdiff_t(c.classes);
  SoftmaxBlock<T> b = {c.what, n, c.classes, w.block, staged, nullptr, staged, w.value};
  if (w.x_direct) {
    b.x = reinterpret_cast<const T*>(c.x.data + c.x.rows.offset(row));
    b.x_stride = c.x.rows.step() / ptrdiff_t(sizeof(T));
  } else {
    gather_rows(tier, c.x, row, n, w.block);
  }
  if (c.out.data && w.out_direct) {
    b.out = reinterpret_cast<T*>(c.out.data + c.out.rows.offset(row));
    b.out_stride = c.out.rows.step() / ptrdiff_t(sizeof(T));
  } else if (c.out.data) {
    b.out = w.block;
  }
  return b;
}

template <class T>
void softmax_chunk(const Tier& tier, const SoftmaxCall& c, size_t begin, size_t end,
                   char* workspace) {
  Arena arena = {workspace, 0};
  const SoftmaxWorkspace<T> w(tier, c, arena);
  for (size_t row = begin, next; row < end; row = next) {
    next = w.block_end(c, row, end);
    const SoftmaxBlock<T> b = block_of(tier, c, w, row, next - row);
    if (c.what == Result::kTargetEntropy) {
      for (size_t i = 0; i < b.rows; ++i) {
        b.value[i] = target_entropy(b.x + ptrdiff_t(i) * b.x_stride, c.classes);
      }
    } else {
      w.kernel.run(b, w.kernel_memory.start, c.streamed && w.out_direct);
      w.kernel_memory.check();
    }
    for (size_t i = 0; c.values && i < b.rows; ++i) {
      static_cast<T*>(c.values)[row + i] = T(b.value[i] * c.unit);
    }
    if (c.out.data && !w.out_direct) scatter_rows(tier, w.block, c.out, row, b.rows);
  }
}

}  // namespace

size_t workspace_bytes(const Tier& tier, const SoftmaxCall& c) {
  Arena counted = {nullptr, 0};
  if (c.float64) {
    SoftmaxWorkspace<double>(tier, c, counted);
  } else {
    SoftmaxWorkspace<float>(tier, c, counted);
  }
  return counted.used;
}

void run_chunk(const Tier& tier, const SoftmaxCall& c, size_t begin, size_t end, char* workspace) {
  return c.float64 ? softmax_chunk<double>(tier, c, begin, end, workspace)
                   : softmax_chunk<float>(tier, c, begin, end, workspace);
}

}  // namespace xentropy
