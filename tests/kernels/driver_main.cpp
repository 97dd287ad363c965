// Compares every kernel of every tier that this machine supports with scalar arithmetic, without
// Python and OpenMP. Built natively, for arm64 (run by qemu), and with ThreadSanitizer.
//
//     driver           one line per kernel: its largest errors in ulp of the arithmetic type; for
//                      16-bit results, beyond the half ulp of their own rounding. Exit status 1
//                      if an error exceeds its bound, or if two ways to a gradient differ in a bit
//     driver --bits    one line per batch: hashes of the losses and of the gradient
//
// What a kernel is compared with: scalar.h; its inputs: batch.h; the comparison: check_*.h.
#include <cstdio>
#include <string>

#include "check_cross_entropy.h"
#include "check_distillation.h"
#include "check_log_probs.h"
#include "check_softmax.h"
#include "check_statistics.h"
#include "driver/pages.h"
#include "tiers.h"

namespace {

// Rows, groups, columns; the last shape of each is large enough for several chunks. In parts.
template <class S>
bool check_all_statistics(const Tier& tier, const Report& report) {
  const std::vector<Shape> shapes[] = {
      {{40, 400, 1}, {33, 1000, 1}, {11, 5003, 1}, {199, 1024, 1}},
      {{83, 1, 1}, {97, 2, 1}, {77, 10, 1}, {51, 31, 1}, {25, 190, 1}, {15001, 10, 1}},
      {{2, 2, 100}, {2, 21, 64}, {3, 1001, 16}, {3, 21, 4000}},
      {{6, 40001, 1}}};
  bool good = true;
  for (const auto& each : shapes) {
    good &= check_statistics<S>(tier, report, Kind::kPlain, each);
    good &= check_statistics<S>(tier, report, Kind::kOptions, each);
  }
  return good;
}

// The last shape of each kernel is large enough for several chunks.
template <class S>
bool check_losses(const Tier& tier, const Report& report) {
  const std::vector<Shape> rows = {{40, 400, 1}, {33, 1000, 1}, {11, 5003, 1}, {199, 1024, 1}};
  const std::vector<Shape> groups = {{83, 1, 1},   {97, 2, 1},   {101, 3, 1},   {67, 4, 1},
                                     {151, 5, 1},  {64, 7, 1},   {65, 8, 1},    {80, 9, 1},
                                     {77, 10, 1},  {63, 16, 1},  {70, 17, 1},   {51, 31, 1},
                                     {50, 33, 1},  {43, 64, 1},  {37, 65, 1},   {30, 96, 1},
                                     {21, 127, 1}, {25, 190, 1}, {45001, 3, 1}, {15001, 10, 1}};
  const std::vector<Shape> columns = {{2, 2, 100}, {3, 3, 33},   {1, 5, 250},   {2, 10, 129},
                                      {2, 21, 64}, {1, 100, 95}, {3, 1001, 16}, {3, 21, 4000}};
  const std::vector<Shape> dense_groups = {{83, 1, 1},  {97, 2, 1},    {101, 3, 1},  {151, 5, 1},
                                           {65, 8, 1},  {77, 10, 1},   {63, 16, 1},  {70, 17, 1},
                                           {51, 31, 1}, {50, 33, 1},   {21, 127, 1}, {20, 256, 1},
                                           {2, 21, 64}, {12001, 10, 1}};
  const std::vector<Shape> dense = {{40, 600, 1}, {7, 1025, 1}, {6, 5003, 1}, {199, 1024, 1}};
  const std::vector<Shape> softmax = {{60, 2, 1},   {50, 3, 1},   {71, 10, 1},  {45, 33, 1},
                                      {20, 300, 1}, {7, 1025, 1}, {6, 5003, 1}, {12001, 10, 1}};
  bool good = check_cross_entropy<S>(tier, report, " rows", Kind::kPlain, rows);
  good &= check_cross_entropy<S>(tier, report, " rows, options", Kind::kOptions, rows);
  good &= check_cross_entropy<S>(tier, report, " groups", Kind::kPlain, groups);
  good &= check_cross_entropy<S>(tier, report, " groups, options", Kind::kOptions, groups);
  good &= check_cross_entropy<S>(tier, report, " columns", Kind::kPlain, columns);
  good &= check_cross_entropy<S>(tier, report, " columns, options", Kind::kOptions, columns);
  good &= check_cross_entropy<S>(tier, report, " dense, labels", Kind::kDense, dense);
  good &=
      check_cross_entropy<S>(tier, report, " dense, probabilities", Kind::kProbabilities, dense);
  good &= check_cross_entropy<S>(tier, report, " dense groups, labels", Kind::kDense, dense_groups);
  good &= check_cross_entropy<S>(tier, report, " dense groups, probabilities", Kind::kProbabilities,
                                 dense_groups);
  for (const auto* shapes : {&rows, &groups, &columns}) {
    good &= check_cross_entropy<S>(tier, report, " softcap", Kind::kPlain, *shapes, 2.5);
    good &= check_cross_entropy<S>(tier, report, " softcap, options", Kind::kOptions, *shapes, 2.5);
    good &= check_log_probs<S>(tier, report, *shapes);
  }
  good &= check_cross_entropy<S>(tier, report, " softcap, dense", Kind::kProbabilities, dense, 2.5);
  for (const auto* shapes : {&groups, &softmax}) good &= check_softmax<S>(tier, report, *shapes);
  return good;
}

template <class S>
bool check_type(const Tier& tier, const char* type, bool prints_bits) {
  const Report report = {prints_bits, std::string(tier.name) + " " + type};
  bool good = check_losses<S>(tier, report);
  good &= check_distillation<S>(tier, report);
  return check_all_statistics<S>(tier, report) && good;
}

// Threads allocate, write and free blocks of every shelf; nobody else writes to one meanwhile.
void exercise_pages() {
  const size_t sizes[] = {128 << 10, 200 << 10, 150 << 10, 3 << 20, 5 << 20, 33 << 20};
  const auto loop = [&sizes](size_t thread) {
    for (size_t i = 0; i < 300; ++i) {
      const size_t bytes = sizes[(i * (thread + 1)) % 6];
      if (!pages_serve(bytes)) continue;
      char* data = static_cast<char*>(allocate_pages(bytes));
      if (!data || uintptr_t(data) % 64 || pages_size(data) < bytes) abort();
      if (pages_reused(data) && pages_size(data) > bytes + bytes / 4) abort();
      data[0] = data[bytes - 1] = char(thread);
      if (i % 50 == 49) release_kept_pages();
      if (data[0] != char(thread) || data[bytes - 1] != char(thread)) abort();
      free_pages(data);
    }
  };
  on_threads(kThreads, loop);
  release_kept_pages();
}

}  // namespace

int main(int count, char** arguments) {
  const bool prints_bits = count == 2 && std::string(arguments[1]) == "--bits";
  bool good = count == 1 || prints_bits;
  exercise_pages();
  for (int i = 0; i < tier_count(); ++i) {
    const Tier& tier = tier_at(i);
    if (!tier_supported(i)) {
      fprintf(stderr, "%s: not on this machine\n", tier.name);
      continue;
    }
    good &= check_type<float>(tier, "float32", prints_bits);
    good &= check_type<double>(tier, "float64", prints_bits);
    good &= check_type<F16>(tier, "float16", prints_bits);
    good &= check_type<BF16>(tier, "bfloat16", prints_bits);
  }
  return good ? 0 : 1;
}
