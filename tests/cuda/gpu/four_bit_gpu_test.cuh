#pragma once
/// Weights in four bits on the GPU: the bytes go there and back, decoded values are the CPU's bit for bit, products are
/// compared with those in float over the decoded weight.

#include <limits>
#include <span>

#include "gpu_test.hpp"
#include "peft/nf4_tensor.hpp"
#include "random_four_bit.hpp"

namespace gpu_test::four_bit {
using cuda::Transpose;

constexpr float kXSize = 1.0f, kASize = 0.05f;

template <class T>
bool equal(VectorView<const T> a, VectorView<const T> b) {
  return a.size == b.size && std::equal(a.begin(), a.end(), b.begin());
}

template <FourBitCode kCode>
void test_bytes(Index out, Index in, Index block, bool nested) {
  const std::string what =
      fmt::format("{} [{}, {}] in blocks of {}{}", name_of(kCode), out, in, block, nested ? ", nested" : "");
  FourBitStorage host = random_storage(out, in, block, nested, 7);
  if (kCode == FourBitCode::kFp4 && out * in % 2 != 0) {
    const_cast<std::uint8_t*>(host.codes.data)[host.codes.size - 1] &= 0xF0;
  }
  const cuda::FourBitTensor<kCode> tensor(host, context());
  const FourBitStorage back = tensor.download(context());
  check_that(back.shape == host.shape && back.dtype == host.dtype && back.block_size == host.block_size &&
                 back.nested_offset == host.nested_offset && equal(back.codes, host.codes) && equal(back.absmax, host.absmax) &&
                 equal(back.nested_codes, host.nested_codes) && equal(back.nested_map, host.nested_map) &&
                 equal(back.nested_absmax, host.nested_absmax),
             "{}: what came back is not what was uploaded", what);
  // value·absmax, each operation rounded: the CPU's decoded weight.
  const float* value = peft::kernels::table_of(kCode).value;
  std::vector<float> want;
  for (Index i = 0; i < out * in; ++i) {
    const std::uint8_t byte = host.codes[i / 2];
    const Index b = i / block;
    const float absmax =
        nested ? rounded(rounded(host.nested_map[host.nested_codes[b]] * host.nested_absmax[b / 256]) + host.nested_offset)
               : host.absmax[b];
    want.push_back(rounded(value[i % 2 == 0 ? byte >> 4 : byte & 15] * absmax));
  }
  cuda::DeviceMatrix<float> whole(out, in);
  tensor.dequantize_rows(0, whole.view(), context());
  check_that(host_copy(whole.view()) == want, "{}: the decoded weight is not the CPU's", what);
  cuda::DeviceMatrix<bf16> some(out - out / 3, in);
  tensor.dequantize_rows(out / 3, some.view(), context());
  std::vector<float> narrow(want.begin() + out / 3 * in, want.end());
  for (float& x : narrow) x = static_cast<float>(bf16(x));
  check_that(host_copy(some.view()) == narrow, "{}: rows from {} on are not decoded to bf16 as the CPU does", what, out / 3);
}

PEFT_GPU_TEST(four_bit_bytes_go_there_and_back) {
  for (const bool nested : {false, true}) {
    test_bytes<FourBitCode::kNf4>(64, 128, 64, nested);
    test_bytes<FourBitCode::kNf4>(37, 192, 64, nested);
    test_bytes<FourBitCode::kNf4>(33, 77, 64, nested);  // blocks over the ends of rows, an odd count
    test_bytes<FourBitCode::kFp4>(45, 256, 128, nested);
    test_bytes<FourBitCode::kFp4>(5, 33, 32, nested);
  }
}

template <FourBitCode kCode, class T>
void test_quantize(Index out, Index in, const FourBitConfig& config, Index spare) {
  const std::string what = fmt::format("{} of {} [{}, {}] in blocks of {}{}", name_of(kCode), type_name<T>(), out, in,
                                       config.block_size, config.double_quant ? ", nested" : "");
  cuda::DeviceMatrix<T> weight = random_matrix<T>(out, in, 5, 0.05f, spare);
  if (out > 2) fill(weight.view().row_range(1, 1), 6, 0.0f);  // blocks of zeros
  Matrix<T> host(out, in);
  cuda::download(weight.view(), host.view(), context().stream());
  const peft::FourBitTensor<kCode> tensor = peft::FourBitTensor<kCode>::quantize(std::as_const(host).view(), config);
  const FourBitStorage& want = tensor.storage();
  const FourBitStorage got = cuda::FourBitTensor<kCode>::quantize(weight.view(), config, context()).download(context());
  check_that(got.shape == want.shape && got.dtype == want.dtype && got.block_size == want.block_size &&
                 equal(got.codes, want.codes) && equal(got.absmax, want.absmax),
             "{}: codes or maxima are not the CPU's", what);
  check_that(got.nested_offset == want.nested_offset && equal(got.nested_codes, want.nested_codes) &&
                 equal(got.nested_map, want.nested_map) && equal(got.nested_absmax, want.nested_absmax),
             "{}: the nested maxima are not the CPU's", what);
}

PEFT_GPU_TEST(four_bit_quantised_on_the_device) {
  const auto all = [](auto zero) {
    using T = decltype(zero);
    test_quantize<FourBitCode::kNf4, T>(37, 192, {.block_size = 64, .double_quant = true}, 0);
    test_quantize<FourBitCode::kNf4, T>(33, 77, {.block_size = 64}, 3);  // over the ends of rows, an odd count
    test_quantize<FourBitCode::kFp4, T>(5, 33, {.block_size = 32, .double_quant = true, .nested_offset = 0.02f}, 0);
    test_quantize<FourBitCode::kFp4, T>(3, 1030, {.block_size = 1024}, 0);
    if (kIsEmulated) return;
    test_quantize<FourBitCode::kNf4, T>(1024, 4096, {.block_size = 64, .double_quant = true}, 16);
  };
  all(float{}), all(f16{}), all(bf16{});
  test_quantize<FourBitCode::kNf4, float>(0, 64, {.double_quant = true}, 0);
}

PEFT_GPU_TEST(four_bit_names_what_cannot_be_quantised) {
  cuda::Context& c = context();
  const auto quantise = [&](cuda::DeviceMatrixView<const f16> weight, const FourBitConfig& config) {
    return text_of([&] { cuda::Nf4Tensor::quantize(weight, config, c); });
  };
  Matrix<f16> host(5, 100);
  for (Index i = 0; i < host.size(); ++i) host.data()[i] = f16(0.01f * static_cast<float>(i % 7));
  host(3, 41) = f16(-std::numeric_limits<float>::infinity());
  host(3, 90) = f16(std::numeric_limits<float>::quiet_NaN());
  host(4, 99) = f16(std::numeric_limits<float>::quiet_NaN());
  cuda::DeviceMatrix<f16> weight(5, 100);
  cuda::upload(std::as_const(host).view(), weight.view(), c.stream());
  const auto view = std::as_const(weight).view();
  const std::string cpu = text_of([&] { peft::Nf4Tensor::quantize(std::as_const(host).view()); });
  check_text(quantise(view, {}), "cuda::" + cpu);
  check_that(cpu.find("row 3, column 41") != std::string::npos, "the CPU says \"{}\"", cpu);
  check_text(quantise(view.row_range(4, 1), {}),
             "cuda::FourBitTensor::quantize: the element at row 0, column 99 of [1, 100] is nan; expected finite numbers");
  check_text(quantise(view, {.block_size = 48}),
             "cuda::FourBitTensor::quantize: the block size is 48; expected a power of two from 32 to 4096");
  check_text(quantise(cuda::DeviceMatrixView<const f16>(view.data, 5, 100, 99), {}),
             "cuda::FourBitTensor::quantize: the weight has a row stride of 99; expected at least 100: 100 columns and 0 spare ones");
  check_text(quantise(view, {.double_quant = true, .nested_offset = std::numeric_limits<float>::infinity()}),
             "cuda::FourBitTensor::quantize: nested_offset is inf; expected a finite number");
}

template <class T>
void test_products(Index out, Index in, Index block, bool nested, Index r, const std::vector<Index>& rows_of) {
  cuda::Context& c = context();
  std::vector<float> bias(static_cast<std::size_t>(out));
  for (Index i = 0; i < out; ++i) bias[static_cast<std::size_t>(i)] = hashed(9, static_cast<std::uint64_t>(i));
  for (float& b : bias) b = static_cast<float>(cuda::detail::converted<T>(b));
  const cuda::Nf4Linear<T> layer(cuda::Nf4Tensor(random_storage(out, in, block, nested, 5), c),
                                 VectorView<const float>(bias.data(), out), c);
  const Index most = *std::max_element(rows_of.begin(), rows_of.end());
  c.reserve(std::max(layer.scratch_bytes(most), cuda::Context::padded(layer.panel_bytes())));
  cuda::DeviceMatrix<float> w(out, in);
  layer.weight().dequantize_rows(0, w.view(), c);
  const cuda::DeviceMatrix<T> a = random_matrix<T>(r, in, 1, kASize), b = random_matrix<T>(out, r, 2, kASize);
  const double u = unit_roundoff<T>();
  constexpr double kWSize = 0.09;
  for (const Index m : rows_of) {
    const std::string what =
        fmt::format("{} [{}, {}] blocks of {}{}, r {}, m {}", type_name<T>(), out, in, block, nested ? ", nested" : "", r, m);
    const cuda::DeviceMatrix<T> x = random_matrix<T>(m, in, 3, kXSize), s = random_matrix<T>(m, r, 4, kXSize),
                                dy = random_matrix<T>(m, out, 6, kXSize);
    cuda::DeviceMatrix<T> y(m, out), dx(m, in);
    const cuda::DeviceLowRankTerm<T> term{0, m, s.view(), b.view(), 2.0f};
    cuda::DeviceMatrix<float> want(m, out);
    reference_product(Transpose::kNo, widened(x.view()), Transpose::kYes, w, 1.0f, 0.0f, want);
    reference_product(Transpose::kNo, widened(s.view()), Transpose::kYes, widened(b.view()), 2.0f, 1.0f, want);
    std::vector<float> y_want = host_copy(want.view());
    for (std::size_t i = 0; i < y_want.size(); ++i) y_want[i] += bias[i % bias.size()];
    const double absolute = sum_tolerance(in, kXSize, kWSize, u) + sum_tolerance(r, kXSize, 2.0 * kASize, u);
    layer.forward_packed(x.view(), term, y.view(), c);
    check_close(what + ": packed", host_copy(y.view()), y_want, out, 1.01 * u, absolute);
    const std::vector<float> first = host_copy(y.view());
    layer.forward_packed(x.view(), term, y.view(), c);
    check_that(first == host_copy(y.view()), "{}: two runs differ", what);
    y.fill_zero(c.stream());
    double size = 0;
    for (const float value : y_want) size = std::max(size, std::fabs(double{value}));
    layer.forward_panel(x.view(), y.view(), c);
    layer.add_terms(std::span(&term, 1), y.view(), c);
    check_close(what + ": panel", host_copy(y.view()), y_want, out, 1.01 * u, absolute + 2.0 * u * size);
    y.fill_zero(c.stream());
    layer.forward_low_rank(x.view(), std::span(&term, 1), y.view(), c);
    check_close(what + ": the chosen way", host_copy(y.view()), y_want, out, 1.01 * u, absolute + 2.0 * u * size);

    cuda::DeviceMatrix<float> dx_want(m, in);
    reference_product(Transpose::kNo, widened(dy.view()), Transpose::kNo, w, 1.0f, 0.0f, dx_want);
    reference_product(Transpose::kNo, widened(s.view()), Transpose::kNo, widened(a.view()), 1.0f, 1.0f, dx_want);
    const cuda::DeviceInputGradTerm<T> back{s.view(), a.view(), {}};
    layer.backward_low_rank(dy.view(), std::span(&back, 1), dx.view(), c);
    check_close(what + ": dx", host_copy(dx.view()), host_copy(dx_want.view()), in, 1.01 * u,
                sum_tolerance(out, kXSize, kWSize, u) + sum_tolerance(r, kXSize, kASize, u) +
                    4.0 * u * std::sqrt(static_cast<double>(out)) * kWSize);
  }
}

PEFT_GPU_TEST(four_bit_products_of_odd_shapes) {
  const auto all = [](auto zero) {
    using T = decltype(zero);
    if (kIsEmulated) {
      test_products<T>(37, 192, 64, true, 5, {1, 19});
      return test_products<T>(33, 77, 64, false, 4, {3});
    }
    for (const bool nested : {false, true}) {
      test_products<T>(96, 128, 64, nested, 8, {1, 4, 5, 16, 17, 33, 70});
      test_products<T>(37, 192, 64, nested, 5, {1, 3, 40});
      test_products<T>(33, 77, 64, nested, 4, {1, 19});
    }
  };
  all(float{}), all(f16{}), all(bf16{});
}

#ifndef PEFT_CUDA_EMULATOR
PEFT_GPU_TEST(four_bit_products_of_models) {
  for (const Shape& shape : model_shapes()) {
    if (!has_memory_for(shape.out * shape.in * 9 + (Index{1} << 30))) {
      std::printf("  skipped %s: not enough memory\n", shape.name);
      continue;
    }
    const std::vector<Index> rows = {1, 2, 4, 5, 8, 16, 17, 64, 256, 1024};
    test_products<f16>(shape.out, shape.in, 64, true, 16, rows);
    test_products<bf16>(shape.out, shape.in, 64, false, 16, rows);
    test_products<float>(shape.out, shape.in, 64, true, 16, {1, 4, 17, 256});
  }
}
#endif

}  // namespace gpu_test::four_bit
