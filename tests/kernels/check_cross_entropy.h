// Cross entropy of any kind of target: losses and gradient.
#pragma once
#include "report.h"
#include "share.h"

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
