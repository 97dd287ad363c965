// What this machine can move at most, with the package's own vectors: no kernel that has to
// read (and write) as much can be faster by more than the caches help.
//
//   read    every element once, as the loss alone must                  4 bytes an element
//   copy    read, and streamed past the caches to another place         8
//   update  read and written back in place                              8
//
// All prefetch 8 KB ahead, which a plain loop leaves 15-25 % behind. n counts floats. OpenMP, as
// in the package: what it costs to start a team belongs to both.
#include <omp.h>

#define XENTROPY_TIER native
#include "../xentropy/kernels/simd/vector.h"

using namespace xentropy::native;

namespace {

constexpr size_t kL = kLanes<float>, kStep = 16 * kLine<float>;
constexpr size_t kAhead = (8 << 10) / sizeof(float);

// body(begin, end) on every thread: whole lines, shared out evenly.
template <class Body>
void share(size_t n, int threads, Body body) {
  const size_t lines = n / kLine<float>;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const size_t team = size_t(omp_get_num_threads()), i = size_t(omp_get_thread_num());
    body(lines * i / team * kLine<float>, lines * (i + 1) / team * kLine<float>);
  }
}

void prefetch_chunk(const float* p) {
  for (size_t q = 0; q < kStep; q += kLine<float>) prefetch_l2(p + kAhead + q);
}

}  // namespace

extern "C" float ceiling_read(const float* from, size_t n, int threads) {
  float result = 0;
  share(n, threads, [&](size_t begin, size_t end) {
    VF sum[4] = {};
    size_t i = begin;
    for (; i + kStep <= end; i += kStep) {
      prefetch_chunk(from + i);
      for (size_t q = 0; q < kStep; q += 4 * kL) {
        for (size_t v = 0; v < 4; ++v) sum[v] += load(from + i + q + v * kL);
      }
    }
    for (; i < end; i += kL) sum[0] += load(from + i);
    const VF all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
#pragma omp atomic
    result += all[0];
  });
  return result;
}

extern "C" void ceiling_copy(const float* from, float* to, size_t n, int threads) {
  share(n, threads, [&](size_t begin, size_t end) {
    size_t i = begin;
    for (; i + kStep <= end; i += kStep) {
      prefetch_chunk(from + i);
      for (size_t q = 0; q < kStep; q += kL) stream(to + i + q, load(from + i + q));
    }
    for (; i < end; i += kL) stream(to + i, load(from + i));
    stream_fence();
  });
}

extern "C" void ceiling_update(float* at, size_t n, int threads) {
  share(n, threads, [&](size_t begin, size_t end) {
    const VF factor = splat(-1.0f);  // nothing that a compiler would leave out
    size_t i = begin;
    for (; i + kStep <= end; i += kStep) {
      prefetch_chunk(at + i);
      for (size_t q = 0; q < kStep; q += kL) store(at + i + q, load(at + i + q) * factor);
    }
    for (; i < end; i += kL) store(at + i, load(at + i) * factor);
  });
}
