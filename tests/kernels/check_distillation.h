// The divergence of two softmaxes: loss and gradient.
#pragma once
#include "report.h"
#include "share.h"

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
