#pragma once
/// The head and its loss on the GPU against the CPU's, in float over the same rounded numbers.

#include <algorithm>

#include "gpu_test.hpp"
#include "peft/dense_linear.hpp"
#include "peft/linear_cross_entropy.hpp"

namespace gpu_test::loss {

constexpr float kXSize = 1.0f, kWSize = 0.3f;

/// A dense head that is trained: dW += dzᵀ·x, in chunks.
template <class T>
struct TrainedHead : cuda::DenseLinear<T> {
  using cuda::DenseLinear<T>::DenseLinear;
  mutable cuda::DeviceMatrix<float> dw;
  mutable std::vector<Index> firsts;

  void forward_rows(cuda::DeviceMatrixView<const T> x, Index first, cuda::DeviceMatrixView<T> y, cuda::Context& c) const {
    firsts.push_back(first);
    this->forward(x, y, c);
  }
  void backward_rows(cuda::DeviceMatrixView<const T> dz, cuda::DeviceMatrixView<const T> x, Index,
                     cuda::DeviceMatrixView<T> dx, cuda::Context& c) const {
    c.matmul()(cuda::Transpose::kYes, dz, cuda::Transpose::kNo, x, 1.0f, 1.0f, static_cast<const T*>(nullptr), dw.view(),
               c.stream());
    this->backward_input(dz, dx, c);
  }
};
static_assert(cuda::DeviceTrainedHead<TrainedHead<f16>> && !cuda::DeviceTrainedHead<cuda::DenseLinear<f16>>);

template <class T>
void test_loss(Index rows, Index vocabulary, Index hidden, Index at_once) {
  cuda::Context& c = context();
  const std::string what = fmt::format("{} [{}, {}], vocabulary {}, {} at once", type_name<T>(), rows, hidden, vocabulary, at_once);
  const auto n = [](Index size) { return static_cast<std::size_t>(size); };
  TrainedHead<T> head(hidden, vocabulary, 0, true);
  fill(head.weight(), 3, kWSize);
  fill(cuda::DeviceMatrixView<T>(head.bias().data, 1, vocabulary), 4, 0.5f);
  head.dw = cuda::DeviceMatrix<float>(vocabulary, hidden);
  head.dw.fill_zero(c.stream());
  const cuda::DenseLinear<T>& frozen = head;
  cuda::DeviceMatrix<T> x = random_matrix<T>(rows, hidden, 5, kXSize), dx(rows, hidden);
  std::vector<std::int32_t> labels(n(rows));
  for (Index i = 0; i < rows; ++i) {
    labels[n(i)] = i % 5 == 2 ? (i % 2 == 0 ? -100 : -1) : static_cast<std::int32_t>((i * 7919 + 3) % vocabulary);
  }
  const std::vector<float> w = host_copy(std::as_const(head).weight()), hx = host_copy(x.view());
  // Some labels that win.
  for (Index i = 0; i < rows; i += 3) {
    if (labels[n(i)] < 0) continue;
    Index best = 0;
    double most = -1e30;
    for (Index j = 0; j < vocabulary; ++j) {
      double z = static_cast<double>(hashed(4, static_cast<std::uint64_t>(j))) * 0.5;
      for (Index k = 0; k < hidden; ++k) z += double{hx[n(i * hidden + k)]} * double{w[n(j * hidden + k)]};
      if (z > most) most = z, best = j;
    }
    labels[n(i)] = static_cast<std::int32_t>(best);
  }

  cuda::DeviceBuffer<std::int32_t> device_labels(rows);
  using Loss = cuda::LinearCrossEntropy<T>;
  const VectorView<const std::int32_t> host_labels(labels.data(), rows);
  Loss::upload_labels(host_labels, vocabulary, device_labels.device_view(), c);
  const cuda::DeviceVectorView<const std::int32_t> label_view = std::as_const(device_labels).device_view();
  Loss loss(c);
  loss.set_logit_bytes(at_once * cuda::aligned_stride<T>(vocabulary) * static_cast<Index>(sizeof(T)));
  c.reserve(loss.scratch_bytes(frozen, rows));

  // The CPU's, over the same numbers.
  Matrix<float> host_w(vocabulary, hidden);
  std::copy(w.begin(), w.end(), host_w.data());
  Buffer<float> host_bias(vocabulary);
  const std::vector<float> bias = host_copy(cuda::DeviceMatrixView<const T>(head.bias().data, 1, vocabulary));
  std::copy(bias.begin(), bias.end(), host_bias.data());
  const peft::DenseLinear<float> host_head(std::move(host_w), std::move(host_bias));
  peft::LinearCrossEntropy<float> wanted;
  Matrix<float> want_dx(rows, hidden);
  LossSum want;
  constexpr double kScale = 0.25;
  wanted.forward_backward(host_head, MatrixView<const float>(hx.data(), rows, hidden), host_labels, kScale, want_dx.view(), want);

  loss.forward_backward(frozen, std::as_const(x).view(), label_view, kScale, dx.view(), c);
  LossSum got = loss.sum(c);
  // A logit errs by its rounding to T and by its sum; a loss by twice that.
  const double u = unit_roundoff<T>(), z_size = static_cast<double>(hidden) * kXSize * kWSize + 0.5;
  const double z_error = z_size * u + sum_tolerance(hidden, kXSize, kWSize) + 64 * 0x1p-24;
  check_that(got.tokens == want.tokens, "{}: {} tokens instead of {}", what, got.tokens, want.tokens);
  check_that(std::fabs(got.loss - want.loss) <= static_cast<double>(want.tokens) * 2 * z_error, "{}: the loss is {} instead of {}",
             what, got.loss, want.loss);
  // Ties of rounded logits go to the first.
  check_that(want.correct > 0 && std::fabs(static_cast<double>(got.correct - want.correct)) <= (u > 0x1p-20 ? 1.0 : 0.0),
             "{}: {} hits instead of {}", what, got.correct, want.correct);
  // Probabilities err by their logits' errors, are rounded once, and sum to 1; those of f16 end at 2^-25.
  const double smallest = std::is_same_v<T, f16> ? 0x1p-25 * static_cast<double>(vocabulary) : 0.0;
  const double absolute = kWSize * (kScale * (4 * z_error + 2 * u + 64 * 0x1p-24) + smallest);
  const std::vector<float> want_gradient(want_dx.data(), want_dx.data() + want_dx.size());
  check_close(what + ": dx", host_copy(dx.view()), want_gradient, hidden, 1.01 * u, absolute);
  for (Index i = 0; i < rows; ++i) {
    if (labels[n(i)] >= 0) continue;
    const std::vector<float> row = host_copy(dx.view().row_range(i, 1));
    check_that(std::all_of(row.begin(), row.end(), [](float value) { return value == 0.0f; }),
               "{}: row {} has no label and a gradient", what, i);
  }

  // Without a gradient: the same sum, added to.
  loss.forward(frozen, std::as_const(x).view(), label_view, c);
  const LossSum twice = loss.sum(c);
  check_that(twice.tokens == 2 * got.tokens && twice.correct == 2 * got.correct &&
                 std::fabs(twice.loss - 2 * got.loss) <= 1e-12 * twice.loss,
             "{}: twice the batch is {} over {}", what, twice.loss, twice.tokens);
  loss.zero_sum(c);
  check_that(loss.sum(c).tokens == 0 && loss.sum(c).loss == 0.0, "{}: the sums do not begin anew", what);

  // A trained head sees every chunk once and gathers dW; the factor in device memory counts; dx takes hidden's place.
  cuda::DeviceBuffer<float> factor(1);
  const float half = 0.5f;
  cuda::upload(VectorView<const float>(&half, 1), factor.device_view(), c.stream());
  loss.set_grad_factor(factor.data());
  const std::vector<float> before = host_copy(dx.view());
  loss.forward_backward(head, std::as_const(x).view(), label_view, 2 * kScale, x.view(), c);
  check_that(host_copy(x.view()) == before, "{}: a trained head in hidden's place gives another gradient", what);
  const Index chunk = Loss::chunk_rows(rows, vocabulary, at_once * cuda::aligned_stride<T>(vocabulary) * static_cast<Index>(sizeof(T)));
  check_that(chunk < rows && static_cast<Index>(head.firsts.size()) == (rows + chunk - 1) / chunk && head.firsts.back() == (rows - 1) / chunk * chunk,
             "{}: {} chunks of {} rows", what, head.firsts.size(), chunk);
  // dW = dzᵀ·x in float, dz by the CPU.
  std::vector<float> dw_want(n(vocabulary * hidden));
  for (Index i = 0; i < rows; ++i) {
    if (labels[n(i)] < 0) continue;
    std::vector<double> p(n(vocabulary));
    double sum = 0;
    for (Index j = 0; j < vocabulary; ++j) {
      double z = double{bias[n(j)]};
      for (Index k = 0; k < hidden; ++k) z += double{hx[n(i * hidden + k)]} * double{w[n(j * hidden + k)]};
      sum += p[n(j)] = std::exp(z);
    }
    for (Index j = 0; j < vocabulary; ++j) {
      const double dz = kScale * (p[n(j)] / sum - (j == labels[n(i)] ? 1.0 : 0.0));
      for (Index k = 0; k < hidden; ++k) dw_want[n(j * hidden + k)] += static_cast<float>(dz * double{hx[n(i * hidden + k)]});
    }
  }
  check_close(what + ": dW", host_copy(head.dw.view()), dw_want, hidden, 1e-5,
              static_cast<double>(rows) * kXSize * (kScale * (4 * z_error + 2 * u + 64 * 0x1p-24) + (smallest > 0 ? 0x1p-25 : 0.0)));
}

PEFT_GPU_TEST(losses_are_the_cpus) {
  const auto all = [](auto zero) {
    using T = decltype(zero);
    test_loss<T>(35, 77, 24, 17);
    if (kIsEmulated) return;
    test_loss<T>(300, 5003, 136, 100);
    test_loss<T>(70, 33000, 64, 40);  // rows that do not fit shared memory
  };
  all(float{}), all(f16{}), all(bf16{});
}

PEFT_GPU_TEST(losses_name_what_does_not_fit) {
  cuda::Context& c = context();
  cuda::DenseLinear<float> head(8, 12);
  cuda::LinearCrossEntropy<float> loss(c);
  cuda::DeviceMatrix<float> x(4, 8), dx(4, 8), wrong(4, 7);
  cuda::DeviceBuffer<std::int32_t> labels(4);
  labels.fill_zero(c.stream());
  c.reserve(loss.scratch_bytes(head, 4));
  const auto view = std::as_const(labels).device_view();
  check_text(text_of([&] { loss.forward(head, std::as_const(x).view(), view.slice(0, 3), c); }),
             "3 labels; expected 4, one for each row of hidden [4, 8]");
  check_text(text_of([&] { loss.forward(head, std::as_const(wrong).view(), view, c); }), "hidden is [4, 7]; expected [4, 8]");
  check_text(text_of([&] { loss.forward_backward(head, std::as_const(x).view(), view, 1.0, wrong.view(), c); }),
             "d_hidden is [4, 7]; expected [4, 8]");
  check_text(text_of([&] {
           loss.forward_backward(head, std::as_const(x).view().row_range(0, 3), view.slice(0, 3), 1.0, x.view().row_range(1, 3), c);
         }),
         "d_hidden and hidden share memory");
  check_text(text_of([&] { loss.forward_backward(head, std::as_const(x).view(), view, std::nan(""), dx.view(), c); }),
             "grad_scale is nan; expected a finite number");
  const std::int32_t ids[] = {0, -100, 12, 1};
  check_text(text_of([&] {
           cuda::LinearCrossEntropy<float>::upload_labels(VectorView<const std::int32_t>(ids, 4), 12, labels.device_view(), c);
         }),
         "the label of row 2 is 12; expected an id below 12");
  check_text(text_of([&] { loss.set_logit_bytes(0); }), "0 bytes of logits");
}

#ifndef PEFT_CUDA_EMULATOR
PEFT_GPU_TEST(losses_are_captured_and_replayed) {
  cuda::Context& c = context();
  const Index rows = 40, vocabulary = 1000, hidden = 64;
  cuda::DenseLinear<f16> head(hidden, vocabulary);
  fill(head.weight(), 3, kWSize);
  const cuda::DenseLinear<f16>& layer = head;
  cuda::DeviceMatrix<f16> x = random_matrix<f16>(rows, hidden, 5, kXSize), dx(rows, hidden);
  cuda::DeviceBuffer<std::int32_t> labels(rows);
  labels.fill_zero(c.stream());
  cuda::LinearCrossEntropy<f16> loss(c);
  c.reserve(loss.scratch_bytes(layer, rows));
  const auto step = [&] {
    loss.zero_sum(c);
    loss.forward_backward(layer, std::as_const(x).view(), std::as_const(labels).device_view(), 1.0, dx.view(), c);
  };
  step();
  const double want = loss.sum(c).loss;
  const std::vector<float> gradient = host_copy(dx.view());
  const cuda::Graph graph(c.stream(), step);
  dx.fill_zero(c.stream());
  graph.launch(c.stream());
  check_that(loss.sum(c).loss == want && host_copy(dx.view()) == gradient, "the replayed graph gives other bits than the call");
}
#endif

}  // namespace gpu_test::loss
