// Selected log-probabilities, and the gradient from a given lse.
#pragma once
#include "report.h"
#include "share.h"

// The label of each row, half of its upstream gradient for the entropy.
template <class S>
struct LogProbRun {
  Batch<S>& batch;
  std::vector<double> log_prob, entropy, lse, on_entropy;

  LogProbRun(const Tier& tier, Batch<S>& batch, size_t threads)
      : batch(batch), log_prob(rows()), entropy(rows()), lse(rows()) {
    for (double each : batch.upstream) on_entropy.push_back(each / 2);
    StatisticsCall call = {};
    call.rows = options(nullptr);
    call.index = index();
    call.log_prob = of_rows(log_prob);
    call.entropy = entropy.data();
    call.lse = lse.data();
    run(tier, call, threads);
  }
  void gradient(const Tier& tier, S* to, bool streamed, size_t threads) {
    LogProbGradientCall call = {};
    call.rows = options(to);
    call.rows.streamed = streamed;
    call.index = index();
    call.log_prob = of_rows(log_prob);
    call.on_log_prob = of_rows(batch.upstream);
    call.lse = of_rows(lse);
    call.entropy = of_rows(entropy);
    call.on_entropy = of_rows(on_entropy);
    run(tier, call, threads);
  }

 private:
  size_t rows() const { return batch.shape.rows(); }
  CrossEntropyCall options(S* gradient) {
    CrossEntropyCall call = batch.call(gradient);
    call.labels = call.sample_weight = call.upstream = Layout{};
    return call;
  }
  Layout of_rows(std::vector<double>& v) const {
    return describe(v.data(), {batch.shape.outer, 1, batch.shape.inner}, kF64);
  }
  Layout index() { return batch.call(nullptr).labels; }

  template <class Call>
  void run(const Tier& tier, const Call& call, size_t threads) {
    share(tier, call, batch.shape.classes, threads,
          [&](size_t, size_t begin, size_t end, char* scratch) {
            run_chunk(tier, call, begin, end, scratch);
          });
  }
};

// Rows near 0: of others p has as many digits as the float64 lse, which this does not measure.
template <class S>
void compare_log_probs(const Batch<S>& batch, const Array<S>& gradient, Report* report) {
  typedef Wide<S> W;
  const Shape& s = batch.shape;
  for (size_t r = 0; r < s.rows(); r += 1 + (s.rows() - 1) / kRowsChecked) {
    if (!batch.counts(r)) continue;
    const auto row = batch.template row<W>(r);
    const scalar::Softmax<W> softmax(row.x);
    if (std::fabs(softmax.peak()) > 200) continue;
    const W entropy = softmax.entropy(), g = W(batch.upstream[r]) * W(0.75);
    for (size_t c = 0; c < s.classes; ++c) {
      const W p = softmax.p(c), log_p = -softmax.negative_log_p(c);
      const W own = size_t(batch.labels[r]) == c ? softmax.one_minus_p(c) : -p;
      const W by_entropy = p == 0 ? 0 : p * (log_p + entropy) / 2;
      const W terms = g * (std::fabs(own) + p * (1 + entropy - (p == 0 ? 0 : log_p)));
      report->note(&report->gradient, error_of(gradient.data()[s.at(r, c)],
                                               scalar::Value<W>{g * (own - by_entropy), terms}));
    }
  }
}

template <class S>
void check_log_prob_batch(const Tier& tier, const Shape& shape, double softcap, Report* report) {
  const size_t offset = shape.classes % 4;
  Batch<S> batch(shape, Kind::kOptions, offset);
  batch.softcap = softcap;
  const Array<S> cached(shape.size(), 0), streamed(shape.size(), offset + 1);
  LogProbRun<S> run(tier, batch, 1), shared(tier, batch, kThreads);
  report->same_bits &= run.log_prob == shared.log_prob && run.entropy == shared.entropy;
  run.gradient(tier, cached.data(), false, 1);
  if (softcap == 0) compare_log_probs(batch, cached, report);
  ++report->batches;
  report->print_bits(shape, softcap ? 30 : 20,
                     hash_of(run.entropy.data(), shape.rows() * sizeof(double)),
                     hash_of(cached.data(), shape.size() * sizeof(S)));
  run.gradient(tier, streamed.data(), true, kThreads);
  report->same_bits &= streamed.same_bits(cached);
  run.gradient(tier, batch.logits.data(), false, kThreads);
  report->same_bits &= batch.logits.same_bits(cached);
}

template <class S>
bool check_log_probs(const Tier& tier, Report report, const std::vector<Shape>& shapes) {
  report.name += " log-probabilities";
  report.gradient_bound = sizeof(S) == 8 ? 200 : kPlainBound;  // |lse| 2^-53
  for (const Shape& shape : shapes) {
    check_log_prob_batch<S>(tier, shape, 0, &report);
    check_log_prob_batch<S>(tier, shape, 2.5, &report);
  }
  return report.close();
}
