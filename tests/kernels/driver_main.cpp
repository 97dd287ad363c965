// Compares every kernel of every tier that this machine supports with scalar arithmetic, without
// Python and OpenMP. Built natively, for arm64 (run by qemu), and with ThreadSanitizer.
//
//     driver           one line per kernel: its largest errors in ulp of the arithmetic type; for
//                      16-bit results, beyond the half ulp of their own rounding. Exit status 1
//                      if an error exceeds its bound, or if two ways to a gradient differ in a bit
//     driver --bits    one line per batch: hashes of the losses and of the gradient
//
// Threads take chunks as those of _kernels.pyx do.
#include <atomic>
#include <cstdio>
#include <string>
#include <thread>

#include "batch.h"
#include "driver/pages.h"
#include "tiers.h"

namespace {

constexpr int kThreads = 3;
constexpr size_t kRowsChecked = 100;  // per batch; the bits of all rows are compared

// A gradient is off by at most 4 ulp: exp 0.9, the sum 1, factor and product 0.5 to 1 each. With
// all options there are up to 10 roundings (listed in tests/helpers/support.py).
constexpr double kPlainBound = 4, kOptionsBound = 10;

template <class T>
struct WideOf {
  typedef double Type;
};
template <>
struct WideOf<double> {
  typedef long double Type;
};
template <class S>
using Wide = typename WideOf<Arithmetic<S>>::Type;

template <class S>
constexpr int kDigits = sizeof(S) == 8 ? 53 : 24;
template <>
constexpr int kDigits<F16> = 11;
template <>
constexpr int kDigits<BF16> = 8;
template <class S>
constexpr int kLeastExponent = sizeof(S) == 8 ? -1021 : -125;
template <>
constexpr int kLeastExponent<F16> = -13;

// The unit in the last place of `value` as an S.
template <class S, class W>
W unit_of(W value) {
  int exponent = kLeastExponent<S>;
  if (value != 0) std::frexp(value, &exponent);
  if (exponent < kLeastExponent<S>) exponent = kLeastExponent<S>;
  return std::ldexp(W(1), exponent - kDigits<S>);
}

template <class S, class W>
double error_of(S actual, const scalar::Value<W>& exact) {
  typedef Arithmetic<S> T;
  W off = std::fabs(W(value_of(actual)) - exact.value);
  if (sizeof(S) == 2) off -= unit_of<S>(exact.value) / 2;
  const W unit = unit_of<T>(exact.value), of_terms = unit_of<T>(exact.terms);
  const double error = double(off / (exact.terms != 0 && of_terms > unit ? of_terms : unit));
  return error == error ? (error > 0 ? error : 0) : INFINITY;
}

template <class Call>
size_t rows_of(const Call& call) {
  return call.rows;
}
size_t rows_of(const DistillationCall& call) { return call.rows.rows; }
size_t rows_of(const StatisticsCall& call) { return call.rows.rows; }
size_t rows_of(const LogProbGradientCall& call) { return call.rows.rows; }

// Calls work(thread) on every thread.
template <class Work>
void on_threads(size_t threads, const Work& work) {
  std::vector<std::thread> team;
  for (size_t t = 1; t < threads; ++t) team.emplace_back(work, t);
  work(0);
  for (std::thread& t : team) t.join();
}

// Processes all chunks of a call on `threads` threads: work(chunk, begin, end, workspace).
template <class Call, class Work>
void share(const Tier& tier, const Call& call, size_t classes, size_t threads, const Work& work) {
  const size_t rows = rows_of(call), each_chunk = chunk_rows(rows, classes);
  const size_t chunks = (rows + each_chunk - 1) / each_chunk, each = workspace_bytes(tier, call);
  const Array<char> scratch(threads * each + 1, 0);
  std::atomic<size_t> next{0};
  on_threads(threads, [&](size_t thread) {
    for (size_t chunk; (chunk = next.fetch_add(1, std::memory_order_relaxed)) < chunks;) {
      const size_t begin = chunk * each_chunk, end = begin + each_chunk;
      work(chunk, begin, end < rows ? end : rows, scratch.data() + thread * each);
    }
  });
}

uint64_t hash_of(const void* data, size_t n) {  // FNV-1a
  uint64_t hash = 0xcbf29ce484222325;
  for (size_t i = 0; i < n; ++i) {
    hash = (hash ^ static_cast<const unsigned char*>(data)[i]) * 0x100000001b3;
  }
  return hash;
}

// The results of a kernel so far.
struct Report {
  bool prints_bits = false;
  std::string name;
  size_t batches = 0;
  double loss = 0, gradient = 0, loss_bound = kPlainBound, gradient_bound = kPlainBound;
  bool same_bits = true;

  void note(double* largest, double error) {
    if (error > *largest) *largest = error;
  }
  void print_bits(const Shape& s, int kind, uint64_t losses, uint64_t gradient) const {
    if (!prints_bits) return;
    printf("%s %zux%zux%zu/%d %016llx %016llx\n", name.c_str(), s.outer, s.classes, s.inner, kind,
           (unsigned long long)losses, (unsigned long long)gradient);
  }
  // Prints the report; returns whether all checks have passed.
  bool close() const {
    const bool good = same_bits && loss <= loss_bound && gradient <= gradient_bound;
    if (!prints_bits) {
      printf("%-40s %3zu batches, loss %5.3g ulp (%g), gradient %5.3g ulp (%g)%s%s\n", name.c_str(),
             batches, loss, loss_bound, gradient, gradient_bound,
             same_bits ? "" : ", BITS DIFFER BETWEEN WAYS", good ? "" : "  FAILED");
    }
    fflush(stdout);
    return good;
  }
};

template <class S>
struct CrossEntropyRun {
  typedef Arithmetic<S> T;
  const Tier& tier;
  Batch<S>& batch;
  std::vector<T> losses;
  double total = 0;

  CrossEntropyRun(const Tier& tier, Batch<S>& batch, S* gradient, bool streamed, size_t threads)
      : tier(tier), batch(batch), losses(batch.shape.rows()) {
    CrossEntropyCall call = batch.call(gradient);
    call.streamed = streamed;
    call.row_loss = losses.data();
    std::vector<double> sums(batch.shape.rows());  // at most one chunk per row
    std::atomic<bool> bad{false};
    share(tier, call, batch.shape.classes, threads, [&](size_t, size_t begin, size_t end, char*) {
      if (inspect_targets(tier, call, begin, end).bad_row >= 0) bad = true;
    });
    if (bad) abort();
    share(tier, call, batch.shape.classes, threads,
          [&](size_t chunk, size_t begin, size_t end, char* scratch) {
            sums[chunk] = run_chunk(tier, call, begin, end, scratch);
          });
    for (double sum : sums) total += sum;
  }
  bool same_bits(const CrossEntropyRun& other) const {
    return total == other.total &&
           std::memcmp(losses.data(), other.losses.data(), losses.size() * sizeof(T)) == 0;
  }
};

template <class S>
void compare(const Batch<S>& batch, const Array<S>& gradient, const CrossEntropyRun<S>& run,
             Report* report) {
  typedef Wide<S> W;
  const Shape& s = batch.shape;
  for (size_t r = 0; r < s.rows(); r += 1 + (s.rows() - 1) / kRowsChecked) {
    if (!batch.counts(r)) {
      report->same_bits &= run.losses[r] == 0;
      for (size_t c = 0; c < s.classes; ++c) {
        report->same_bits &= value_of(gradient.data()[s.at(r, c)]) == 0;
      }
      continue;
    }
    const auto row = batch.template row<W>(r);
    const scalar::Softmax<W> softmax(row.x);
    const W all_mass = row.all_mass();
    report->note(&report->loss, error_of(run.losses[r], row.loss(softmax)));
    for (size_t c = 0; c < s.classes; ++c) {
      const S actual = gradient.data()[s.at(r, c)];
      report->note(&report->gradient, error_of(actual, row.gradient(softmax, all_mass, c)));
    }
  }
}

// Runs one batch in every way. One thread with regular stores is compared with the reference,
// unless there is a softcap, of which elementary_main.cpp and Python know the errors. The other
// ways must have the same bits: several threads with non-temporal stores, losses only, and last in
// place.
template <class S>
void check_batch(const Tier& tier, const Shape& shape, Kind kind, double softcap, Report* report) {
  const size_t offset = shape.classes % 4;
  Batch<S> batch(shape, kind, offset);
  batch.softcap = softcap;
  const Array<S> cached(shape.size(), 0), streamed(shape.size(), offset + 1);
  const CrossEntropyRun<S> first(tier, batch, cached.data(), false, 1);
  if (softcap == 0) compare(batch, cached, first, report);
  ++report->batches;
  report->print_bits(shape, int(kind) + (softcap ? 10 : 0),
                     hash_of(first.losses.data(), shape.rows() * sizeof(Arithmetic<S>)),
                     hash_of(cached.data(), shape.size() * sizeof(S)));
  const CrossEntropyRun<S> shared(tier, batch, streamed.data(), true, kThreads);
  report->same_bits &= shared.same_bits(first) && streamed.same_bits(cached);
  const CrossEntropyRun<S> losses(tier, batch, nullptr, false, kThreads);
  report->same_bits &= losses.same_bits(first);
  const CrossEntropyRun<S> in_place(tier, batch, batch.logits.data(), false, kThreads);
  report->same_bits &= in_place.same_bits(first) && batch.logits.same_bits(cached);
}

template <class S>
bool check_cross_entropy(const Tier& tier, Report report, const char* name, Kind kind,
                         const std::vector<Shape>& shapes, double softcap = 0) {
  report.name += name;
  if (kind != Kind::kPlain) report.gradient_bound = kOptionsBound;
  if (kind != Kind::kPlain) report.loss_bound = kOptionsBound;
  for (const Shape& shape : shapes) check_batch<S>(tier, shape, kind, softcap, &report);
  return report.close();
}

// --- the softmax family

template <class W>
scalar::Value<W> exact_of(Result what, const scalar::Softmax<W>& s, size_t c) {
  switch (what) {
    case Result::kSoftmax:
      return {s.p(c), 0};
    case Result::kLogSoftmax:
      return {-s.negative_log_p(c), 0};
    case Result::kLogSumExp:  // the maximum plus a logarithm, one of which may be negative
      return {s.lse(), std::fabs(s.peak()) + s.above_peak()};
    default:
      return {s.entropy(), 0};
  }
}

template <class S>
SoftmaxCall softmax_call(const Batch<S>& batch, const Shape& shape, Result what) {
  SoftmaxCall call = {};
  call.what = what;
  call.rows = shape.rows();
  call.classes = shape.classes;
  call.x = describe(batch.logits.data(), shape, kDType<S>);
  call.unit = 1;
  call.float64 = sizeof(Arithmetic<S>) == 8;
  return call;
}

template <class S>
void check_softmax_batch(const Tier& tier, const Shape& shape, Result what, Report* report) {
  typedef Arithmetic<S> T;
  Batch<S> batch(shape, Kind::kPlain, 1);
  const bool maps = what == Result::kSoftmax || what == Result::kLogSoftmax;
  const Array<S> out(shape.size(), 3), again(shape.size(), 0);
  std::vector<T> values(shape.rows()), values_again(shape.rows());
  const auto run = [&](size_t threads, bool streamed, S* to, T* to_values) {
    SoftmaxCall call = softmax_call(batch, shape, what);
    if (maps) call.out = describe(to, shape, kDType<S>);
    call.values = maps ? nullptr : to_values;
    call.streamed = streamed;
    share(tier, call, shape.classes, threads, [&](size_t, size_t begin, size_t end, char* scratch) {
      run_chunk(tier, call, begin, end, scratch);
    });
  };
  run(1, false, out.data(), values.data());
  run(kThreads, true, again.data(), values_again.data());
  report->same_bits &= out.same_bits(again) && values == values_again;
  report->print_bits(shape, int(what), hash_of(values.data(), shape.rows() * sizeof(T)),
                     hash_of(out.data(), shape.size() * sizeof(S)));
  ++report->batches;
  for (size_t r = 0; r < shape.rows(); r += 1 + (shape.rows() - 1) / kRowsChecked) {
    const auto row = batch.template row<Wide<S>>(r);
    const scalar::Softmax<Wide<S>> s(row.x);
    for (size_t c = 0; maps && c < shape.classes; ++c) {
      const S actual = out.data()[shape.at(r, c)];
      report->note(&report->gradient, error_of(actual, exact_of(what, s, c)));
    }
    if (!maps) report->note(&report->loss, error_of(values[r], exact_of(what, s, 0)));
  }
  if (!maps) return;
  run(kThreads, false, batch.logits.data(), nullptr);
  report->same_bits &= batch.logits.same_bits(out);
}

template <class S>
bool check_softmax(const Tier& tier, Report report, const std::vector<Shape>& shapes) {
  report.name += " softmax family";
  report.loss_bound = 2 * kPlainBound;  // the entropy takes two exps and two sums
  for (const Shape& shape : shapes) {
    for (Result what :
         {Result::kSoftmax, Result::kLogSoftmax, Result::kLogSumExp, Result::kEntropy}) {
      check_softmax_batch<S>(tier, shape, what, &report);
    }
  }
  return report.close();
}

// --- the divergence of two softmaxes

// Loss and gradient of a row from their definitions; the terms of the loss cancel in them.
template <class W>
scalar::Value<W> divergence_of(const scalar::Softmax<W>& s, const scalar::Softmax<W>& t, W beta,
                               size_t classes, std::vector<W>* gradient) {
  W loss = 0, terms = 0, own = 0;
  const bool between = beta > 0 && beta < 1;
  for (size_t c = 0; c < classes; ++c) {
    const W S = s.p(c), P = t.p(c), M = between ? (1 - beta) * S + beta * P : beta == 0 ? S : P;
    const W log_m = between ? std::log(M) : beta == 0 ? -s.negative_log_p(c) : -t.negative_log_p(c);
    const W of_s = S == 0 ? 0 : S * (-s.negative_log_p(c) - log_m);
    const W of_t = P == 0 ? 0 : P * (-t.negative_log_p(c) - log_m);
    own += of_s;
    loss += beta * of_t + (1 - beta) * of_s + (between ? 0 : beta == 0 ? of_t : of_s);
    terms += S + P + std::fabs(of_s) + std::fabs(of_t);
    (*gradient)[c] = beta == 0 ? S - P : of_s;
  }
  for (size_t c = 0; beta > 0 && c < classes; ++c) {
    (*gradient)[c] = (between ? 1 - beta : 1) * ((*gradient)[c] - s.p(c) * own);
  }
  return {loss, terms};
}

template <class S>
std::vector<Arithmetic<S>> distil(const Tier& tier, Batch<S>& batch, Batch<S>& teacher, double beta,
                                  S* gradient, bool streamed, size_t threads) {
  std::vector<Arithmetic<S>> losses(batch.shape.rows());
  DistillationCall call = {};
  call.rows = batch.call(gradient);
  call.rows.labels.data = nullptr;
  call.rows.streamed = streamed;
  call.rows.row_loss = losses.data();
  call.teacher = teacher.call(nullptr).logits;
  call.teacher_scale = call.rows.terms.logit_scale;
  call.beta = beta;
  call.log_beta = beta > 0 ? std::log(beta) : 0;
  share(tier, call, batch.shape.classes, threads,
        [&](size_t, size_t begin, size_t end, char* w) { run_chunk(tier, call, begin, end, w); });
  return losses;
}

// A gradient's unit is that of its row's largest entry; a loss is off by the rounding of its terms,
// which the definition subtracts.
template <class S>
void check_divergences(const Tier& tier, const Shape& shape, double beta, Report* report) {
  typedef Wide<S> W;
  Batch<S> batch(shape, Kind::kPlain, 1), teacher(shape, Kind::kPlain, 2, 1);
  const Array<S> out(shape.size(), 3), again(shape.size(), 0);
  const auto losses = distil(tier, batch, teacher, beta, out.data(), false, 1);
  report->same_bits &= distil(tier, batch, teacher, beta, again.data(), true, kThreads) == losses;
  report->same_bits &= out.same_bits(again);
  report->same_bits &= distil<S>(tier, batch, teacher, beta, nullptr, false, kThreads) == losses;
  report->print_bits(shape, int(10 * beta),
                     hash_of(losses.data(), losses.size() * sizeof(losses[0])),
                     hash_of(out.data(), shape.size() * sizeof(S)));
  ++report->batches;
  std::vector<W> gradient(shape.classes);
  for (size_t r = 0; r < shape.rows(); r += 1 + (shape.rows() - 1) / kRowsChecked) {
    const auto x = batch.template row<W>(r), y = teacher.template row<W>(r);
    const scalar::Softmax<W> s(x.x), t(y.x);
    const auto loss = divergence_of<W>(s, t, W(beta), shape.classes, &gradient);
    report->note(&report->loss, error_of(losses[r], loss));
    W largest = sizeof(W) == sizeof(double) ? W(1e-6) : W(1);  // below, the definition cancels
    for (W g : gradient) largest = std::fabs(g) > largest ? std::fabs(g) : largest;
    for (size_t c = 0; c < shape.classes; ++c) {
      const scalar::Value<W> exact = {gradient[c], largest};
      report->note(&report->gradient, error_of(out.data()[shape.at(r, c)], exact));
    }
  }
  const auto own = distil(tier, batch, teacher, beta, batch.logits.data(), false, kThreads);
  report->same_bits &= own == losses && batch.logits.same_bits(out);
}

template <class S>
bool check_distillation(const Tier& tier, Report report) {
  report.name += " distillation";
  report.loss_bound = report.gradient_bound = 2 * kPlainBound;
  for (const Shape& shape : std::vector<Shape>{{83, 2, 1},
                                               {60, 5, 1},
                                               {2, 21, 30},
                                               {40, 64, 1},
                                               {33, 321, 1},
                                               {11, 5003, 1},
                                               {260, 1024, 1}}) {
    for (double beta : {0.0, 0.5, 1.0}) check_divergences<S>(tier, shape, beta, &report);
  }
  return report.close();
}

// --- selected log-probabilities and their gradient

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

// --- the statistics of rows

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

// --- all kernels

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
