#pragma once
/// Dense layers and LoRA on the GPU: every route against products in float by cuBLASLt, and backward against double on the
/// host.

#include <span>

#include "gpu_test.hpp"
#include "peft/dense_linear.hpp"
#include "peft/lora.hpp"
#include "random_four_bit.hpp"

namespace gpu_test::linear {
using cuda::Transpose;

constexpr float kXSize = 1.0f, kWSize = Factors::kASize, kBSize = Factors::kBSize;

/// y = x·Wᵀ + bias + scale·S·Bᵀ in float.
template <class T>
std::vector<float> reference_forward(cuda::DeviceMatrixView<const T> x, cuda::DeviceMatrixView<const T> w,
                                     cuda::DeviceVectorView<const T> bias, cuda::DeviceMatrixView<const T> s,
                                     cuda::DeviceMatrixView<const T> b, float scale) {
  cuda::DeviceMatrix<float> y(x.rows, w.rows);
  reference_product(Transpose::kNo, widened(x), Transpose::kYes, widened(w), 1.0f, 0.0f, y);
  if (s.cols > 0) reference_product(Transpose::kNo, widened(s), Transpose::kYes, widened(b), scale, 1.0f, y);
  std::vector<float> result = host_copy(y.view());
  if (!bias.empty()) {
    const std::vector<float> add = host_copy(cuda::DeviceMatrixView<const T>(bias.data, 1, bias.size));
    for (std::size_t i = 0; i < result.size(); ++i) result[i] += add[i % add.size()];
  }
  return result;
}

template <class T>
void test_forward(Index out, Index in, Index r, const std::vector<Index>& rows_of, bool with_bias) {
  cuda::Context& c = context();
  const Factors host(in, out, r, 2.0, 0.0f, 11);
  cuda::Lora<T> lora(host, c);
  cuda::DenseLinear<T> base(in, out, r, with_bias);
  fill(base.weight(), 3, kWSize);
  if (with_bias) fill(cuda::DeviceMatrixView<T>(base.bias().data, 1, out), 4, 1.0f);
  const cuda::DenseLinear<T>& layer = base;
  const Index most = *std::max_element(rows_of.begin(), rows_of.end());
  c.reserve(lora.scratch_bytes(layer, most));
  typename cuda::Lora<T>::Saved saved;
  lora.reserve(saved, most);
  for (const Index m : rows_of) {
    cuda::DeviceMatrix<T> memory = random_matrix<T>(m, in, 5, kXSize, r), y(m, out);
    const cuda::DeviceMatrixView<const T> x = std::as_const(memory).view();
    const std::string what = fmt::format("{} y [{}, {}], in {}, r {}", type_name<T>(), m, out, in, r);
    lora.forward(layer, x, y.view(), saved, nullptr, c);

    cuda::DeviceMatrix<float> s_want(m, r);
    reference_product(Transpose::kNo, widened(x), Transpose::kYes, widened(lora.a_copy()), 1.0f, 0.0f, s_want);
    const cuda::DeviceMatrixView<const T> s = std::as_const(saved.s).view().row_range(0, m);
    check_close(what + ": S", host_copy(s), host_copy(s_want.view()), r, unit_roundoff<T>() * 1.01,
                sum_tolerance(in, kXSize, kWSize));

    const std::vector<float> want = reference_forward<T>(x, layer.weight(), layer.bias(), s, lora.b_copy(), 2.0f);
    const double absolute =
        sum_tolerance(in, kXSize, kWSize) + sum_tolerance(r, 2.0 * std::sqrt(static_cast<double>(in)) * kWSize, kBSize);
    const auto close = [&](const char* route, double rounded = 0.0) {
      check_close(what + ": " + route, host_copy(y.view()), want, out, unit_roundoff<T>() * 1.01, absolute + rounded);
      y.fill_zero(c.stream());
    };
    close("the chosen route");
    const cuda::DeviceLowRankTerm<T> term{0, m, s, lora.b_copy(), 2.0f};
    layer.forward_fused(x, term, y.view(), c);
    close("fused");
    // Twice: the same bits.
    layer.forward_fused(x, term, y.view(), c);
    const std::vector<float> first = host_copy(y.view());
    layer.forward_fused(x, term, y.view(), c);
    check_that(first == host_copy(y.view()), "{}: two runs differ", what);
    y.fill_zero(c.stream());
    // y is rounded between the two products, and s·B is in the columns: values of size |y| and |b| rounded once more.
    double size = 0;
    for (const float value : want) size = std::max(size, std::fabs(double{value}));
    layer.forward(x, y.view(), c);
    layer.add_terms(std::span(&term, 1), y.view(), c);
    close("two products", 2.0 * unit_roundoff<T>() * size);
    lora.install(base, c);
    cuda::detail::launch_lora_shrink<T>(x, {}, lora.a_copy(), x.spare_columns(r), c);
    layer.forward_widened(x, r, y.view(), c);
    close("spare columns", unit_roundoff<T>() * size);
    lora.forward(layer, x, y.view(), c);
    close("inference", unit_roundoff<T>() * size);
  }
}

PEFT_GPU_TEST(lora_forward_of_odd_shapes) {
  const auto all = [](auto zero) {
    using T = decltype(zero);
    if (kIsEmulated) {
      test_forward<T>(40, 72, 5, {2, 19}, true);
      return test_forward<T>(72, 130, 16, {33}, false);
    }
    test_forward<T>(40, 33, 5, {1, 2, 3, 17, 64, 65}, true);
    test_forward<T>(129, 257, 16, {1, 4, 5, 127, 300}, false);
    test_forward<T>(64, 64, 1, {1, 16, 129}, true);
    test_forward<T>(520, 1032, 64, {1, 8, 33, 1024}, true);
  };
  all(float{}), all(f16{}), all(bf16{});
}

#ifndef PEFT_CUDA_EMULATOR
PEFT_GPU_TEST(lora_forward_of_models) {
  for (const Shape& shape : model_shapes()) {
    if (!has_memory_for(shape.out * shape.in * 12 + (Index{1} << 30))) {
      std::printf("  skipped %s: not enough memory\n", shape.name);
      continue;
    }
    const std::vector<Index> rows = {1, 2, 4, 8, 16, 17, 64, 256, 1024};
    test_forward<f16>(shape.out, shape.in, 16, rows, false);
    test_forward<bf16>(shape.out, shape.in, 16, rows, false);
    test_forward<float>(shape.out, shape.in, 16, {1, 4, 17, 256}, false);
  }
}
#endif

/// Sums in double, on the host.
std::vector<float> host_product(const std::vector<float>& a, const std::vector<float>& b, Index m, Index n, Index k,
                                bool across_a, bool across_b, double scale) {
  std::vector<float> c(static_cast<std::size_t>(m * n));
  for (Index i = 0; i < m; ++i) {
    for (Index j = 0; j < n; ++j) {
      double sum = 0;
      for (Index q = 0; q < k; ++q) {
        const float left = a[static_cast<std::size_t>(across_a ? q * m + i : i * k + q)];
        const float right = b[static_cast<std::size_t>(across_b ? j * k + q : q * n + j)];
        sum += double{left} * double{right};
      }
      c[static_cast<std::size_t>(i * n + j)] = static_cast<float>(scale * sum);
    }
  }
  return c;
}

template <class T>
void test_backward(Index out, Index in, Index r, Index m, float p) {
  cuda::Context& c = context();
  const Factors host(in, out, r, 1.5, p, 21);
  cuda::Lora<T> lora(host, c);
  cuda::DenseLinear<T> base(in, out);
  fill(base.weight(), 3, kWSize);
  const cuda::DenseLinear<T>& layer = base;
  c.reserve(lora.scratch_bytes(layer, m));
  typename cuda::Lora<T>::Saved saved;
  lora.reserve(saved, m);
  lora.ensure_grads(c);
  cuda::DeviceMatrix<T> x = random_matrix<T>(m, in, 5, kXSize), y(m, out), dy = random_matrix<T>(m, out, 6, kXSize), dx(m, in);
  const DropoutKey key{.seed = 77, .step = 3, .module = 2, .first_row = 4};
  lora.forward(layer, std::as_const(x).view(), y.view(), saved, &key, c);
  lora.backward(layer, std::as_const(dy).view(), std::as_const(x).view(), saved, dx.view(), c);
  const std::string what = fmt::format("{} [{}, {}], r {}, m {}, p {}", type_name<T>(), out, in, r, m, p);

  // The mask is the CPU's.
  std::vector<float> dropped = host_copy(x.view());
  std::vector<float> mask(dropped.size(), 1.0f);
  if (p > 0.0f) {
    const Index stride = (in + 7) / 8;
    std::vector<std::uint8_t> want(static_cast<std::size_t>(m * stride)), got(want.size());
    for (Index i = 0; i < m; ++i) dropout_mask_row(key, i, in, p, want.data() + i * stride);
    const cuda::DeviceMaskBits& bits = saved.dropout.view();
    check_that(bits.bits != nullptr && bits.stride_bytes == stride, "{}: the mask has a stride of {}; expected {}", what,
               bits.stride_bytes, stride);
    cuda::download(cuda::DeviceVectorView<const std::uint8_t>(bits.bits, m * stride),
                   VectorView<std::uint8_t>(got.data(), m * stride), c.stream());
    check_that(got == want, "{}: the mask's bits are not the CPU's", what);
    for (Index i = 0; i < m; ++i) {
      for (Index k = 0; k < in; ++k) {
        const bool kept = (want[static_cast<std::size_t>(i * stride + k / 8)] >> (k % 8) & 1) != 0;
        const auto at = static_cast<std::size_t>(i * in + k);
        mask[at] = kept ? bits.scale : 0.0f;
        dropped[at] *= mask[at];
      }
    }
  }
  const double u = unit_roundoff<T>(), keep = 1.0 / (1.0 - static_cast<double>(p));
  const std::vector<float> w = host_copy(layer.weight()), a = host_copy(lora.a_copy()), b = host_copy(lora.b_copy()),
                           hdy = host_copy(dy.view());
  const cuda::DeviceMatrixView<const T> s = std::as_const(saved.s).view().row_range(0, m);
  check_close(what + ": S", host_copy(s), host_product(dropped, a, m, r, in, false, true, 1.0), r, 1.01 * u,
              sum_tolerance(in, kXSize * keep, kWSize, p > 0.0f ? u : 0.0));
  // What follows is compared with what follows from dS as it was rounded.
  std::vector<float> ds = host_product(hdy, b, m, r, out, false, false, 1.5);
  for (float& value : ds) value = static_cast<float>(cuda::detail::converted<T>(value));
  const double ds_size = 1.5 * std::sqrt(static_cast<double>(out)) * kBSize;
  check_close(what + ": dB", host_copy(lora.grad_b()), host_product(hdy, host_copy(s), out, r, m, true, false, 1.5), r, 1e-5,
              1.5 * sum_tolerance(m, kXSize, 3.0 * std::sqrt(static_cast<double>(in)) * kWSize));
  check_close(what + ": dA", host_copy(lora.grad_a()), host_product(ds, dropped, r, in, m, true, false, 1.0), in, 1e-5,
              sum_tolerance(m, 3.0 * ds_size, keep, 2.0 * u));
  std::vector<float> want = host_product(hdy, w, m, in, out, false, false, 1.0);
  const std::vector<float> low = host_product(ds, a, m, in, r, false, false, 1.0);
  for (std::size_t i = 0; i < want.size(); ++i) want[i] += mask[i] * low[i];
  check_close(what + ": dx", host_copy(dx.view()), want, in, 1.01 * u,
              sum_tolerance(out, kXSize, kWSize) + keep * sum_tolerance(r, 3.0 * ds_size, kWSize, 2.0 * u) +
                  (p > 0.0f ? 0.0 : 4.0 * u * std::sqrt(static_cast<double>(out)) * kWSize));
  // Gradients are added to.
  const std::vector<float> before = host_copy(lora.grad_b());
  lora.backward(layer, std::as_const(dy).view(), std::as_const(x).view(), saved, {}, c);
  std::vector<float> doubled = before;
  for (float& value : doubled) value *= 2.0f;
  check_close(what + ": dB twice", host_copy(lora.grad_b()), doubled, r, 1e-6, 1e-6);
}

PEFT_GPU_TEST(lora_backward) {
  const auto all = [](auto zero) {
    using T = decltype(zero);
    if (kIsEmulated) return test_backward<T>(72, 40, 5, 18, 0.25f);
    test_backward<T>(96, 80, 8, 50, 0.0f);
    test_backward<T>(96, 80, 8, 50, 0.25f);
    test_backward<T>(131, 75, 5, 33, 0.1f);
    test_backward<T>(64, 256, 32, 1, 0.5f);
    test_backward<T>(256, 192, 16, 300, 0.05f);
  };
  all(float{}), all(f16{}), all(bf16{});
}

PEFT_GPU_TEST(lora_goes_back_to_the_host) {
  Factors host(48, 36, 4, 0.5, 0.0f, 31), other(48, 36, 4, 0.5, 0.0f, 99);
  const cuda::Lora<bf16> lora(host, context());
  lora.download(other, context());
  check_that(std::equal(host.a_.data(), host.a_.data() + host.a_.size(), other.a_.data()), "A is not what was uploaded");
  check_that(std::equal(host.b_.data(), host.b_.data() + host.b_.size(), other.b_.data()), "B is not what was uploaded");
  bool threw = false;
  try {
    Factors wrong(48, 36, 5, 0.5, 0.0f, 1);
    lora.download(wrong, context());
  } catch (const ShapeError&) {
    threw = true;
  }
  check_that(threw, "another rank was taken");
}

/// A base layer's bias is the only one that a stranger's kernel knows.
template <class T>
struct NoOtherBias {
  using value_type = T;
  const cuda::DenseLinear<T>& layer;
  Index in_features() const { return layer.in_features(); }
  Index out_features() const { return layer.out_features(); }
  void forward(cuda::DeviceMatrixView<const T> x, cuda::DeviceMatrixView<T> y, cuda::Context& c) const { layer.forward(x, y, c); }
};

/// lora_bias against peft::Lora in float over the same rounded numbers, on all routes.
template <class T>
void test_lora_bias(Index m, Index out, Index in, Index r, bool base_has_bias) {
  cuda::Context& c = context();
  const std::string what = fmt::format("{} [{}, {}], r {}, m {}{}", type_name<T>(), out, in, r, m, base_has_bias ? ", with bias" : "");
  const Factors factors(in, out, r, 1.5, 0.0f, 21);
  const auto rounded_to = [](float value) { return static_cast<float>(cuda::detail::converted<T>(value)); };
  peft::Lora<float> host(in, out, r, 1.5);
  for (Index i = 0; i < host.a().size(); ++i) host.a().data()[i] = rounded_to(factors.a_.data()[i]);
  for (Index i = 0; i < host.b().size(); ++i) host.b().data()[i] = rounded_to(factors.b_.data()[i]);
  host.add_bias();
  for (Index i = 0; i < out; ++i) host.bias().value().data()[i] = hashed(8, static_cast<std::uint64_t>(i));
  cuda::Lora<T> lora(host, c);
  cuda::DenseLinear<T> base(in, out, r, base_has_bias);
  fill(base.weight(), 3, kWSize);
  if (base_has_bias) fill(cuda::DeviceMatrixView<T>(base.bias().data, 1, out), 4, 1.0f);
  const cuda::DenseLinear<T>& layer = base;
  c.reserve(lora.scratch_bytes(layer, m));
  typename cuda::Lora<T>::Saved saved;
  lora.reserve(saved, m);
  lora.ensure_grads(c);
  cuda::DeviceMatrix<T> x = random_matrix<T>(m, in, 5, kXSize, r), dy = random_matrix<T>(m, out, 6, kXSize), y(m, out);
  const cuda::DeviceMatrixView<const T> cx = std::as_const(x).view();

  Matrix<float> w(out, in);
  const std::vector<float> hw = host_copy(layer.weight()), hx = host_copy(x.view()), hdy = host_copy(dy.view());
  std::copy(hw.begin(), hw.end(), w.data());
  Buffer<float> bias(base_has_bias ? out : 0);
  if (base_has_bias) {
    const std::vector<float> from = host_copy(cuda::DeviceMatrixView<const T>(layer.bias().data, 1, out));
    std::copy(from.begin(), from.end(), bias.data());
  }
  const peft::DenseLinear<float> host_base(std::move(w), std::move(bias));
  Matrix<float> want(m, out);
  peft::Lora<float>::Saved kept;
  host.forward(host_base, MatrixView<const float>(hx.data(), m, in), want.view(), kept, DropoutMask());
  host.backward(MatrixView<const float>(hdy.data(), m, out), MatrixView<const float>(hx.data(), m, in), kept);

  // S, the joined bias (up to 2.5) and, between two products, y are rounded to T.
  const double u = unit_roundoff<T>(), root_r = std::sqrt(static_cast<double>(r));
  const double s_size = std::sqrt(static_cast<double>(in)) * kWSize;
  double size = 2.5;
  for (Index i = 0; i < want.size(); ++i) size = std::max(size, std::fabs(double{want.data()[i]}));
  const double absolute = sum_tolerance(in, kXSize, kWSize) + 1.5 * (sum_tolerance(r, s_size, kBSize) + 4 * root_r * s_size * kBSize * u) +
                          2.5 * u + 2 * u * size;
  const std::vector<float> wanted(want.data(), want.data() + want.size());
  const auto close = [&](const char* route) {
    check_close(what + ": " + route, host_copy(y.view()), wanted, out, 1.01 * u, absolute);
    y.fill_zero(c.stream());
  };
  lora.forward(layer, cx, y.view(), saved, nullptr, c);
  close("training");
  lora.forward(layer, cx, y.view(), c);
  close("inference");
  lora.install(base, c);
  lora.forward(layer, cx, y.view(), c);
  close("the route with columns");
  // The routes that were not chosen, with the joined bias.
  cuda::DeviceBuffer<T> joined(out);
  cuda::detail::launch_bias_sum<T>(layer.bias(), std::as_const(lora).bias(), 1.5f, joined.device_view(), c);
  const cuda::DeviceVectorView<const T> other = std::as_const(joined).device_view();
  const cuda::DeviceLowRankTerm<T> term{0, m, std::as_const(saved.s).view().row_range(0, m), lora.b_copy(), 1.5f};
  layer.forward_fused(cx, term, other, y.view(), c);
  close("fused");
  layer.forward_low_rank(cx, std::span<const cuda::DeviceLowRankTerm<T>>(), other, y.view(), c);
  layer.add_terms(std::span(&term, 1), y.view(), c);
  close("two products");
  cuda::detail::launch_lora_shrink<T>(cx, {}, lora.a_copy(), cx.spare_columns(r), c);
  layer.forward_widened(cx, r, other, y.view(), c);
  close("spare columns");

  lora.backward(layer, std::as_const(dy).view(), cx, saved, {}, c);
  std::vector<float> got(static_cast<std::size_t>(out)), grad_want(host.bias().grad().data(), host.bias().grad().data() + out);
  std::vector<std::string> names;
  lora.for_each_parameter([&](const ParameterInfo& info, cuda::DeviceVectorView<float>, cuda::DeviceVectorView<float> grad) {
    names.emplace_back(info.name);
    if (names.size() == 3) cuda::download(cuda::DeviceVectorView<const float>(grad), VectorView<float>(got.data(), grad.size), c.stream());
  }, "m.");
  check_that(names == std::vector<std::string>{"m.lora_A.weight", "m.lora_B.weight", "m.lora_B.bias"}, "{}: other parameters", what);
  check_close(what + ": dc", got, grad_want, 1, 1e-5, 1.5 * sum_tolerance(m, kXSize, 1.0));

  peft::Lora<float> back(in, out, r, 1.5), none(in, out, r, 1.5);
  back.add_bias();
  lora.download(back, c);
  check_that(std::equal(back.bias().value().data(), back.bias().value().data() + out, host.bias().value().data()),
             "{}: the bias that came back is another", what);
  int threw = 0;
  try {
    lora.download(none, c);
  } catch (const ConfigError&) {
    ++threw;
  }
  try {
    lora.forward(NoOtherBias<T>{layer}, cx, y.view(), c);
  } catch (const ConfigError&) {
    ++threw;
  }
  try {
    layer.forward_low_rank(cx, std::span(&term, 1), other.slice(0, out - 1), y.view(), c);
  } catch (const ShapeError&) {
    ++threw;
  }
  check_that(threw == 3, "{}: of three calls with a wrong bias {} threw", what, threw);
}

/// Over four bits: the bias is the base's and c, by both routes.
template <class T>
void test_lora_bias_of_four_bits(Index m) {
  cuda::Context& c = context();
  const Index out = 40, in = 64, r = 4;
  const std::string what = fmt::format("{} over four bits, m {}", type_name<T>(), m);
  std::vector<float> bias(static_cast<std::size_t>(out)), sum(bias);
  cuda::Lora<T> plain(in, out, r, 0.5, 0.0f, c), lora(in, out, r, 0.5, 0.0f, c, true);
  for (cuda::Lora<T>* one : {&plain, &lora}) {
    fill(one->a(), 1, kWSize);
    fill(one->b(), 2, kBSize);
    one->refresh(c);
  }
  fill(cuda::DeviceMatrixView<float>(lora.bias().data, 1, out), 3, 1.0f);
  const std::vector<float> own = host_copy(cuda::DeviceMatrixView<const float>(lora.bias().data, 1, out));
  for (std::size_t i = 0; i < bias.size(); ++i) {
    bias[i] = static_cast<float>(cuda::detail::converted<T>(hashed(9, i)));
    sum[i] = static_cast<float>(cuda::detail::converted<T>(std::fma(0.5f, own[i], bias[i])));
  }
  const VectorView<const float> one(bias.data(), out), both(sum.data(), out);
  const cuda::Nf4Linear<T> base(cuda::Nf4Tensor(random_storage(out, in, 64, true, 5), c), one, c);
  const cuda::Nf4Linear<T> joined(cuda::Nf4Tensor(random_storage(out, in, 64, true, 5), c), both, c);
  c.reserve(std::max(lora.scratch_bytes(base, m), cuda::Context::padded(base.panel_bytes())));
  const cuda::DeviceMatrix<T> x = random_matrix<T>(m, in, 5, kXSize);
  cuda::DeviceMatrix<T> y(m, out), want(m, out);
  lora.forward(base, x.view(), y.view(), c);
  plain.forward(joined, x.view(), want.view(), c);
  check_that(host_copy(y.view()) == host_copy(want.view()), "{}: other bits than with that bias in the base", what);
  base.forward_panel(x.view(), joined.bias(), y.view(), c);
  joined.forward_panel(x.view(), want.view(), c);
  check_that(host_copy(y.view()) == host_copy(want.view()), "{}: by panels other bits than with that bias in the base", what);
}

PEFT_GPU_TEST(lora_bias_joins_the_bases) {
  const auto all = [](auto zero) {
    using T = decltype(zero);
    test_lora_bias<T>(5, 40, 72, 4, true);
    test_lora_bias<T>(33, 24, 40, 3, false);
    test_lora_bias_of_four_bits<T>(3);
    if (kIsEmulated) return;
    test_lora_bias<T>(300, 520, 256, 16, true);
    test_lora_bias_of_four_bits<T>(1024);
  };
  all(float{}), all(f16{}), all(bf16{});
}

#ifndef PEFT_CUDA_EMULATOR
PEFT_GPU_TEST(forward_is_captured_and_replayed) {
  cuda::Context& c = context();
  const Index in = 512, out = 384, m = 3;
  const Factors host(in, out, 8, 1.0, 0.0f, 41);
  const cuda::Lora<f16> lora(host, c);
  cuda::DenseLinear<f16> base(in, out);
  fill(base.weight(), 3, kWSize);
  const cuda::DenseLinear<f16>& layer = base;
  c.reserve(lora.scratch_bytes(layer, m));
  cuda::DeviceMatrix<f16> x = random_matrix<f16>(m, in, 5, kXSize), y(m, out);
  lora.forward(layer, std::as_const(x).view(), y.view(), c);  // choices of cuBLASLt are made once
  const cuda::Graph graph(c.stream(), [&] { lora.forward(layer, std::as_const(x).view(), y.view(), c); });
  fill(x.view(), 6, kXSize);
  lora.forward(layer, std::as_const(x).view(), y.view(), c);
  const std::vector<float> want = host_copy(y.view());
  y.fill_zero(c.stream());
  graph.launch(c.stream());
  check_that(host_copy(y.view()) == want, "the replayed graph gives other bits than the call");
  bool threw = false;
  try {
    const cuda::Graph wrong(c.stream(), [&] { c.reserve(c.reserved() + 1); });
  } catch (const CudaError&) {
    threw = true;
  }
  check_that(threw, "memory was taken while a graph was captured");
  lora.forward(layer, std::as_const(x).view(), y.view(), c);
  check_that(host_copy(y.view()) == want, "the stream does not work after a capture that failed");
}
#endif

}  // namespace gpu_test::linear
