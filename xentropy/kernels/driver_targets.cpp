// A look at the targets of a call, chunk by chunk, before anything is written.
#include "targets.h"

namespace xentropy {
namespace {

constexpr size_t kPiece = 256;

// Sums of weights over rows.
struct Weights {
  const CrossEntropyCall& call;
  SumOverRows sum;
  uint64_t strange = 0;  // the highest bit: whether a sample weight is infinite or nan
  double ones[kPiece], gathered[kPiece];

  explicit Weights(const CrossEntropyCall& c) : call(c) {
    for (double& one : ones) one = 1;
  }

  // Sample weights of the rows [row, row + n), n <= kPiece.
  const double* of_rows(size_t row, size_t n) {
    if (!call.repeat.data) return ones;
    const double* weight = numbers_of(call.repeat, row, n, gathered);
    for (size_t i = 0; i < n; ++i) {
      const uint64_t magnitude = bit_cast<uint64_t>(weight[i]) & ~(uint64_t(1) << 63);
      strange |= magnitude + (uint64_t(1) << 52);  // an exponent of ones overflows
    }
    return weight;
  }

  // Adds the rows that count of [row, row + n). label(i): of row + i.
  template <class Label>
  void add(const LabelCheck& check, size_t row, size_t n, Label label) {
    double value[kPiece];
    uint64_t index[kPiece];
    for (size_t i = 0, m; i < n; i += m, row += m) {
      m = smaller(kPiece, n - i);
      const double* weight = of_rows(row, m);
      for (size_t j = 0; j < m; ++j) {
        // A label may have changed since it was found right.
        const uint64_t y = label(i + j), counts = check.counted(y) & ~check.wrong(y);
        index[j] = y & (0 - counts);
        value[j] = bit_cast<double>(bit_cast<uint64_t>(weight[j]) & (0 - counts));
      }
      for (size_t j = 0; call.weight && j < m; ++j) value[j] *= call.weight[index[j]];
      sum.add(row, m, value);
    }
  }

  // Adds all rows of [row, row + n).
  void add(size_t row, size_t n) {
    for (size_t i = 0, m; i < n; i += m) {
      m = smaller(kPiece, n - i);
      sum.add(row + i, m, of_rows(row + i, m));
    }
  }
};

}  // namespace

TargetReport inspect_targets(const CrossEntropyCall& c, size_t begin, size_t end) {
  TargetReport report = {-1, 0, false};
  const LabelCheck check(c);
  Weights weights(c);
  const bool weighted = c.weight || c.repeat.data;
  for_label_runs(c.labels, begin, end, [&, check](size_t row, size_t n, auto label) {
    uint64_t counted = 0, wrong = 0;
    for (size_t i = 0; i < n; ++i) {
      const uint64_t y = label(i), counts = check.counted(y);
      counted += counts;
      wrong |= check.wrong(y) & counts;
    }
    for (size_t i = 0; wrong && i < n; ++i) {  // all may have been put right meanwhile
      if ((check.wrong(label(i)) & check.counted(label(i))) == 0) continue;
      report.bad_row = ptrdiff_t(row + i);
      return false;
    }
    if (weighted) {
      weights.add(check, row, n, label);
    } else {
      report.weight += double(counted);
    }
    return true;
  });
  if (c.probabilities.data && c.repeat.data) {
    weights.add(begin, end - begin);
  } else if (c.probabilities.data) {
    report.weight = double(end - begin);
  }
  report.weight += weights.sum.total();
  report.strange = weights.strange >> 63;
  return report;
}

}  // namespace xentropy
