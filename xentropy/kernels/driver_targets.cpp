// A look at the targets of a call, chunk by chunk, before anything is written.
#include "targets.h"

namespace xentropy {
namespace {

// Adds weight(i, sample weight of row + i) for i < n to `sum`.
template <class Weight>
void add_weights(const CrossEntropyCall& c, size_t row, size_t n, SumOverRows& sum, Weight weight) {
  constexpr size_t kMost = 256;
  double value[kMost];
  for (size_t i = 0, m; i < n; i += m) {
    m = smaller(kMost, n - i);
    for (size_t j = 0; j < m; ++j) value[j] = 1;
    if (c.repeat.data) gather(c.repeat, row + i, m, value);
    for (size_t j = 0; j < m; ++j) value[j] = weight(i + j, value[j]);
    sum.add(row + i, m, value);
  }
}

}  // namespace

TargetReport inspect_targets(const CrossEntropyCall& c, size_t begin, size_t end) {
  TargetReport report = {-1, 0};
  const LabelCheck check(c);
  SumOverRows weights;
  for_label_runs(c.labels, begin, end, [&, check](size_t row, size_t n, auto label) {
    uint64_t counted = 0, wrong = 0;
    for (size_t i = 0; i < n; ++i) {
      const uint64_t y = label(i), counts = check.counted(y);
      counted += counts;
      wrong |= check.wrong(y) & counts;
    }
    for (size_t i = 0; wrong; ++i) {
      if ((check.wrong(label(i)) & check.counted(label(i))) == 0) continue;
      report.bad_row = ptrdiff_t(row + i);
      return false;
    }
    if (!c.weight && !c.repeat.data) report.weight += double(counted);
    if (c.weight || c.repeat.data) {
      add_weights(c, row, n, weights, [&](size_t i, double value) {
        const uint64_t y = label(i);
        const bool counts = check.counted(y) & ~check.wrong(y);  // it may have changed meanwhile
        return counts ? value * (c.weight ? c.weight[y] : 1) : 0;
      });
    }
    return true;
  });
  if (c.probabilities.data && !c.repeat.data) report.weight = double(end - begin);
  if (c.probabilities.data && c.repeat.data) {
    add_weights(c, begin, end - begin, weights, [](size_t, double value) { return value; });
  }
  report.weight += weights.total();
  return report;
}

}  // namespace xentropy
