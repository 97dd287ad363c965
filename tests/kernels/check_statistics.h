// The statistics of rows, also where threads share each row.
#pragma once
#include "report.h"
#include "share.h"

template <class S>
struct StatisticsRun {
  typedef Arithmetic<S> T;
  std::vector<T> lse, loss, entropy, max_log_prob, sum_squares;
  std::vector<int64_t> argmax, rank;

  // Room for the results of the batch, to which the call writes.
  StatisticsRun(Batch<S>& batch, StatisticsCall* call) {
    call->rows = batch.call(nullptr);
    call->float64 = call->rows.float64;
    const size_t n = batch.shape.rows();
    for (auto* each : {&lse, &loss, &entropy, &max_log_prob, &sum_squares}) each->resize(n);
    for (auto* each : {&argmax, &rank}) each->resize(n);
    call->lse = lse.data(), call->loss = loss.data(), call->entropy = entropy.data();
    call->max_log_prob = max_log_prob.data(), call->sum_squares = sum_squares.data();
    call->argmax = argmax.data(), call->rank = rank.data();
  }
  bool same_bits(const StatisticsRun& other) const {
    const auto same = [](const auto& a, const auto& b) {  // nan too
      return std::memcmp(a.data(), b.data(), a.size() * sizeof a[0]) == 0;
    };
    return same(lse, other.lse) && same(loss, other.loss) && same(entropy, other.entropy) &&
           same(max_log_prob, other.max_log_prob) && same(sum_squares, other.sum_squares) &&
           argmax == other.argmax && rank == other.rank;
  }
};

template <class S>
StatisticsRun<S> statistics_of_chunks(const Tier& tier, Batch<S>& batch, size_t threads) {
  StatisticsCall call = {};
  StatisticsRun<S> run(batch, &call);
  share(tier, call, batch.shape.classes, threads,
        [&](size_t, size_t begin, size_t end, char* scratch) {
          run_chunk(tier, call, begin, end, scratch);
        });
  return run;
}

// The same where all threads share each row, if it can be split.
template <class S>
StatisticsRun<S> statistics_of_parts(const Tier& tier, Batch<S>& batch) {
  StatisticsCall call = {};
  StatisticsRun<S> run(batch, &call);
  const size_t parts = parts_of(call);
  if (parts == 1) return statistics_of_chunks(tier, batch, kThreads);
  const Array<char> scratch(split_workspace_bytes(tier, call), 0);
  for (size_t r = 0; r < batch.shape.rows(); ++r) {
    on_threads(kThreads, [&](size_t thread) {
      for (size_t part = thread; part < parts; part += kThreads) {
        run_part(tier, call, Step::kExps, r, part, scratch.data());
      }
    });
    run_part(tier, call, Step::kSettle, r, 0, scratch.data());
  }
  return run;
}

template <class S>
void compare(const Batch<S>& batch, const StatisticsRun<S>& run, Report* report) {
  typedef Wide<S> W;
  const Shape& shape = batch.shape;
  for (size_t r = 0; r < shape.rows(); r += 1 + (shape.rows() - 1) / kRowsChecked) {
    if (!batch.counts(r)) {
      report->same_bits &= run.loss[r] == 0 && run.argmax[r] == -1 && run.rank[r] == -1;
      continue;
    }
    const auto row = batch.template row<W>(r);
    const scalar::Softmax<W> s(row.x);
    const size_t y = size_t(batch.labels[r]);
    W squares = 0;
    int64_t rank = 0;
    for (size_t c = 0; c < shape.classes; ++c) {
      squares += s.p(c) * s.p(c);
      rank += row.x[c] > row.x[y] || (row.x[c] == row.x[y] && c < y);
    }
    report->same_bits &= run.rank[r] == rank && run.argmax[r] == int64_t(s.top());
    report->note(&report->loss, error_of(run.lse[r], exact_of(Result::kLogSumExp, s, 0)));
    report->note(&report->loss, error_of(run.entropy[r], exact_of(Result::kEntropy, s, 0)));
    report->note(&report->loss, error_of(run.loss[r], scalar::Value<W>{s.negative_log_p(y), 0}));
    report->note(&report->loss,
                 error_of(run.max_log_prob[r], scalar::Value<W>{-s.above_peak(), 0}));
    report->note(&report->loss, error_of(run.sum_squares[r], scalar::Value<W>{squares, 0}));
  }
}

template <class S>
bool check_statistics(const Tier& tier, Report report, Kind kind,
                      const std::vector<Shape>& shapes) {
  report.name += kind == Kind::kPlain ? " statistics" : " statistics, options";
  report.loss_bound = 2 * kPlainBound;  // an exp, two sums and a quotient more than the loss
  for (const Shape& shape : shapes) {
    Batch<S> batch(shape, kind, 1);
    const StatisticsRun<S> first = statistics_of_chunks(tier, batch, 1);
    compare(batch, first, &report);
    ++report.batches;
    report.print_bits(shape, int(kind),
                      hash_of(first.loss.data(), shape.rows() * sizeof first.loss[0]),
                      hash_of(first.entropy.data(), shape.rows() * sizeof first.entropy[0]));
    report.same_bits &= statistics_of_chunks(tier, batch, kThreads).same_bits(first) &&
                        statistics_of_parts(tier, batch).same_bits(first);
    batch.softcap = 2.5;  // of which Python knows the errors
    report.same_bits &=
        statistics_of_chunks(tier, batch, kThreads).same_bits(statistics_of_chunks(tier, batch, 1));
  }
  return report.close();
}
