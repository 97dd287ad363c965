// Checks the targets of a call and sums their weights, chunk by chunk, before anything is written.
#include "driver/targets.h"

namespace xentropy {
namespace {

constexpr size_t kPiece = 512;

// The sum of the weights of rows.
struct Weights {
  const Tier& tier;
  const CrossEntropyCall& call;
  SumOverRows sum;
  uint64_t non_finite = 0;  // the highest bit is set if a sample weight is infinite or nan
  double ones[kPiece], gathered[kPiece];

  Weights(const Tier& t, const CrossEntropyCall& c) : tier(t), call(c) {
    for (size_t i = 0; c.weight && i < kPiece; ++i) ones[i] = 1;
  }

  // The sample weights of the rows [row, row + n), n <= kPiece.
  const double* of_rows(size_t row, size_t n) {
    if (!call.sample_weight.data) return ones;
    const double* weight = row_values(call.sample_weight, row, n, gathered);
    for (size_t i = 0; i < n; ++i) {
      const uint64_t magnitude = bit_cast<uint64_t>(weight[i]) & ~(uint64_t(1) << 63);
      non_finite |= magnitude + (uint64_t(1) << 52);  // overflows if all exponent bits are set
    }
    return weight;
  }

  // Adds the weights of rows that are not ignored.
  void add(size_t row, size_t n, const int64_t* label) {
    double value[kPiece];
    int64_t marked[kPiece];
    const double* weight = of_rows(row, n);
    // A label may have changed since it was checked.
    tier.mark_labels(label_rule(call), label, n, marked);
    for (size_t i = 0; i < n; ++i) {
      const uint64_t counts = ~uint64_t(marked[i] >> 63);
      marked[i] &= int64_t(counts);
      value[i] = bit_cast<double>(bit_cast<uint64_t>(weight[i]) & counts);
    }
    for (size_t i = 0; call.weight && i < n; ++i) value[i] *= call.weight[marked[i]];
    sum.add(row, n, value);
  }

  void add_all(size_t row, size_t n) { sum.add(row, n, of_rows(row, n)); }
};

// The first label out of range; -1 if another thread has corrected all of them meanwhile.
ptrdiff_t find_wrong(const LabelRule& rule, const int64_t* label, size_t n) {
  for (size_t i = 0; i < n; ++i) {
    const int64_t y = label[i];
    if (uint64_t(y) > rule.last && !(rule.ignores && y == rule.ignored)) return ptrdiff_t(i);
  }
  return -1;
}

// Checks n rows, n <= kPiece; false if a label is out of range.
bool inspect_piece(size_t row, size_t n, Weights* weights, TargetReport* report) {
  const CrossEntropyCall& c = weights->call;
  if (!c.labels.data) {
    if (c.sample_weight.data) weights->add_all(row, n);
    if (!c.sample_weight.data) report->weight += double(n);
    return true;
  }
  const LabelRule rule = label_rule(c);
  int64_t gathered[kPiece];
  const int64_t* label = labels_of(c.labels, row, n, gathered);
  const LabelCount count = weights->tier.count_labels(rule, label, n);
  const ptrdiff_t wrong = count.wrong ? find_wrong(rule, label, n) : -1;
  if (wrong >= 0) {
    report->bad_row = ptrdiff_t(row) + wrong;
    return false;
  }
  if (c.weight || c.sample_weight.data) {
    weights->add(row, n, label);
  } else {
    report->weight += double(count.counted);
  }
  return true;
}

}  // namespace

TargetReport inspect_targets(const Tier& tier, const CrossEntropyCall& c, size_t begin,
                             size_t end) {
  TargetReport report = {-1, 0, false};
  Weights weights(tier, c);
  for (size_t row = begin, n; row < end; row += n) {
    n = smaller(kPiece, end - row);
    if (!inspect_piece(row, n, &weights, &report)) break;
  }
  report.weight += weights.sum.total();
  report.non_finite = weights.non_finite >> 63;
  return report;
}

}  // namespace xentropy
