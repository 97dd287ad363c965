// The softmax family.
#pragma once
#include "report.h"
#include "share.h"

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
