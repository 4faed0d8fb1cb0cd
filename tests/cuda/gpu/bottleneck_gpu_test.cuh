#pragma once
/// Bottleneck adapters on the GPU against peft::Adapter in float over the same rounded numbers.

#include <algorithm>

#include "gpu_test.hpp"
#include "peft/adapter.hpp"

namespace gpu_test::bottleneck {

constexpr float kXSize = 1.0f, kWSize = 0.2f, kScaling = 0.75f;

/// An adapter behind a branch or beside it in a block without norms, its weights numbers of T, a trained scaling kScaling.
template <class T>
Adapter<float> host_adapter(Index d, const AdapterConfig& config, std::uint32_t seed) {
  Adapter<float> host(d, config);
  host.for_each_parameter([&](const ParameterInfo& info, VectorView<float> value, VectorView<float>) {
    ++seed;
    if (info.name == "scaling") {
      value[0] = kScaling;
      return;
    }
    for (Index i = 0; i < value.size; ++i) {
      value[i] = static_cast<float>(cuda::detail::converted<T>(kWSize * hashed(seed, static_cast<std::uint64_t>(i))));
    }
  });
  return host;
}

template <class T>
void test_passes(Index m, Index d, Index factor, const char* activation, bool parallel, float p = 0.0f, bool learned = false) {
  cuda::Context& c = context();
  AdapterConfig config;
  config.reduction_factor = static_cast<double>(factor);
  config.non_linearity = activation;
  config.original_ln_after = parallel;
  config.is_parallel = parallel;
  config.dropout = p;
  config.scaling = double{kScaling};
  if (learned) config.scaling = "learned";
  Adapter<float> host = host_adapter<T>(d, config, 3);
  const Index b = host.bottleneck_size();
  const std::string what = fmt::format("{} [{}, {}], bottleneck {}, {}{}, p {}{}", type_name<T>(), m, d, b, activation,
                                       parallel ? ", parallel" : "", p, learned ? ", learned" : "");
  const DropoutKey key{.seed = 77, .step = 3, .module = 2, .first_row = 4};
  cuda::Bottleneck<T> adapter(host, c);
  c.reserve(adapter.scratch_bytes(m));
  typename cuda::Bottleneck<T>::Saved saved;
  adapter.reserve(saved, m);
  adapter.ensure_grads(c);
  const cuda::DeviceMatrix<T> h = random_matrix<T>(m, d, 5, kXSize), r = random_matrix<T>(m, d, 6, kXSize),
                              dy = random_matrix<T>(m, d, 7, kXSize);
  cuda::DeviceMatrix<T> y(m, d), other(m, d), dx(m, d);

  const std::vector<float> hh = host_copy(h.view()), hr = host_copy(r.view()), hdy = host_copy(dy.view());
  const auto view = [&](const std::vector<float>& from) { return MatrixView<const float>(from.data(), m, d); };
  Matrix<float> want_y(m, d), dh(m, d), dr(m, d);
  Adapter<float>::Saved kept;
  host.forward(view(hh), view(hr), ops::NoNorm(), want_y.view(), kept, key);
  host.zero_grad();
  host.backward(view(hdy), view(hh), view(hr), ops::NoNorm(), kept, dh.view(), dr.view());

  // Serial: y = u(h) + h, dh = dy + du/dh. Parallel: y = u(r) + (h + r), dr = dy + du/dr.
  const cuda::DeviceMatrix<T>& x = parallel ? r : h;
  cuda::DeviceMatrix<T> residual(m, d);
  std::vector<float> sum = hh;
  if (parallel) {
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += hr[i];
  }
  cuda::upload(MatrixView<const float>(sum.data(), m, d), residual.view(), c.stream());
  adapter.forward(x.view(), std::as_const(residual).view(), y.view(), saved, &key, c);
  const auto vector_of = [](const Matrix<float>& from) { return std::vector<float>(from.data(), from.data() + from.size()); };
  const auto root = [](Index n) { return std::sqrt(static_cast<double>(n)); };
  // S is rounded to T, f of it again; slopes and f'' are below 1.2. Errors of a sum's terms are independent: six deviations.
  const double u = unit_roundoff<T>(), keep = 1.0 / (1.0 - double{p}), c_scale = double{kScaling} * keep;
  const double dy_error = p > 0.0f ? u : 0.0;  // d̂ is rounded to T
  check_that((saved.dropout.view().bits != nullptr) == (p > 0.0f), "{}: a mask where none is, or none where one is", what);
  double s_size = 0;
  for (Index i = 0; i < kept.bottleneck.s.size(); ++i) s_size = std::max(s_size, std::fabs(double{kept.bottleneck.s.data()[i]}));
  const double s_error = 1.01 * s_size * u + sum_tolerance(d, kXSize, kWSize) + 0x1p-22;
  check_close(what + ": S", host_copy(std::as_const(saved.s).view().row_range(0, m)), vector_of(kept.bottleneck.s), b, 0.0, s_error);
  const double f_error = 1.2 * s_error + s_size * (u + 64 * 0x1p-24);
  const double residual_error = parallel ? 2.0 * u : 0.0;
  check_close(what + ": y", host_copy(y.view()), vector_of(want_y), d, 1.01 * u,
              c_scale * 2 * root(b) * f_error * kWSize + sum_tolerance(b, s_size, kWSize) + residual_error + 0x1p-21);
  // Inference, and in the residual's place: the same bits.
  adapter.forward(x.view(), std::as_const(residual).view(), other.view(), c);
  check_that((host_copy(other.view()) == host_copy(y.view())) == (p == 0.0f), "{}: inference gives other bits", what);
  adapter.forward(x.view(), std::as_const(residual).view(), residual.view(), saved, &key, c);
  check_that(host_copy(residual.view()) == host_copy(y.view()), "{}: in the residual's place the bits are others", what);

  adapter.backward(dy.view(), x.view(), saved, dy.view(), dx.view(), c);
  const double du_size = c_scale * 3 * root(d) * kXSize * kWSize / 3;  // |c·dy·U|, three deviations
  const double ds_error = du_size * (1.2 * s_error + 3 * u + 2 * dy_error + 64 * 0x1p-24) + sum_tolerance(d, kXSize, kWSize);
  check_close(what + ": dx", host_copy(dx.view()), vector_of(parallel ? dr : dh), d, 1.01 * u,
              2 * root(b) * ds_error * kWSize + sum_tolerance(b, du_size, kWSize) + 0x1p-21);
  std::vector<std::vector<float>> want, got;
  std::vector<std::string> names, device_names;
  host.for_each_parameter([&](const ParameterInfo& info, VectorView<float>, VectorView<float> grad) {
    names.emplace_back(info.name);
    want.emplace_back(grad.begin(), grad.end());
  }, "a.");
  const auto fetch = [&] {
    got.clear(), device_names.clear();
    adapter.for_each_parameter([&](const ParameterInfo& info, cuda::DeviceVectorView<float>, cuda::DeviceVectorView<float> grad) {
      device_names.emplace_back(info.name);
      got.emplace_back(static_cast<std::size_t>(grad.size));
      cuda::download(cuda::DeviceVectorView<const float>(grad), VectorView<float>(got.back().data(), grad.size), c.stream());
    }, "a.");
  };
  fetch();
  check_that(names == device_names && names.size() == (learned ? 5 : 4), "{}: the parameters have other names than the CPU's", what);
  const double rows = 2 * root(m), sums = sum_tolerance(m, du_size, kXSize);
  std::vector<double> of = {rows * ds_error * kXSize + sums, rows * ds_error + sums,
                            c_scale * rows * (f_error + dy_error * s_size) * kXSize + sum_tolerance(m, s_size, keep),
                            c_scale * rows * dy_error + sum_tolerance(m, keep, 1.0)};
  if (learned) {  // f(S)∘(d̂·U) over all of S, and g∘Σd̂
    const double factor_size = du_size / double{kScaling};
    of.insert(of.begin(), 2 * root(m * b) * factor_size * (f_error + s_size * (2 * u + 2 * dy_error)) + sum_tolerance(m * b, s_size, factor_size) +
                              2 * root(d) * kWSize * (rows * dy_error + sum_tolerance(m, keep, 1.0)));
  }
  for (std::size_t i = 0; i < of.size(); ++i) check_close(what + ": " + names[i], got[i], want[i], 1, 1e-5, of[i] + 0x1p-20);
  // Gradients are added to; dx is not needed.
  const std::vector<std::vector<float>> before = got;
  adapter.backward(dy.view(), x.view(), saved, {}, {}, c);
  fetch();
  for (std::size_t i = 0; i < before.size(); ++i) {
    std::vector<float> doubled = before[i];
    for (float& value : doubled) value *= 2.0f;
    check_close(what + ": twice " + names[i], got[i], doubled, 1, 2e-6, 2e-6);
  }
}

PEFT_GPU_TEST(bottlenecks_are_the_cpus) {
  const auto all = [](auto zero) {
    using T = decltype(zero);
    test_passes<T>(19, 72, 3, "gelu", false);
    test_passes<T>(5, 40, 2, "swish", true, 0.25f, true);
    test_passes<T>(3, 44, 4, "tanh", false, 0.25f, true);  // one slice
    if (kIsEmulated) return;
    test_passes<T>(300, 768, 16, "gelu_new", false);
    test_passes<T>(1, 1024, 4, "tanh", true);
    test_passes<T>(4100, 768, 2, "swish", true, 0.1f, true);  // one slice, and wider than shared memory
    test_passes<T>(70, 200, 4, "gelu", false, 0.5f);
  };
  all(float{}), all(f16{}), all(bf16{});
}

PEFT_GPU_TEST(bottlenecks_go_back_to_the_host) {
  cuda::Context& c = context();
  const AdapterConfig config = AdapterConfig::seq_bn();
  Adapter<bf16> host(64, config), other(64, config, 0, 9);
  cuda::Bottleneck<bf16> adapter(host, c);
  adapter.download(other, c);
  std::vector<float> want, got;
  host.for_each_parameter([&](const ParameterInfo&, VectorView<float> value, auto) { want.insert(want.end(), value.begin(), value.end()); });
  other.for_each_parameter([&](const ParameterInfo&, VectorView<float> value, auto) { got.insert(got.end(), value.begin(), value.end()); });
  check_that(want == got, "what came back is not what was uploaded");

  const auto refused = [&](auto&& change) {
    AdapterConfig wrong = config;
    change(wrong);
    Adapter<float> one(64, wrong);
    return text_of([&] { cuda::Bottleneck<bf16>(one, c); });
  };
  check_text(refused([](AdapterConfig& wrong) { wrong.ln_before = true; }), "ln_before is true; expected false");
  check_text(refused([](AdapterConfig& wrong) { wrong.ln_after = true; }), "ln_after is true; expected false");
  check_text(refused([](AdapterConfig& wrong) { wrong.scaling = "channel"; }), "scaling is \"channel\"; expected a number or \"learned\"");
  AdapterConfig narrow = config;
  narrow.reduction_factor = 32.0;
  Adapter<float> small(64, narrow);
  check_text(text_of([&] { adapter.download(small, c); }), "hidden size 64, bottleneck 2; expected 64 and 4");
  AdapterConfig stronger = config;
  stronger.scaling = 2.0;
  Adapter<float> strong(64, stronger);
  check_text(text_of([&] { adapter.upload(strong, c); }), "non_linearity relu and scaling 2; expected relu and 1");
  cuda::DeviceMatrix<bf16> x(3, 64), y(3, 64), wrong(3, 63);
  c.reserve(adapter.scratch_bytes(3));
  const auto cx = std::as_const(x).view();
  check_text(text_of([&] { adapter.forward(cx, {}, wrong.view(), c); }), "y is [3, 63]; expected [3, 64]");
  check_text(text_of([&] { adapter.forward(cx, cx, x.view(), c); }), "y and x share memory");
  check_text(text_of([&] { adapter.forward(cx.row_range(0, 2), std::as_const(y).view().row_range(1, 2), y.view().row_range(0, 2), c); }),
             "y and a share memory");
  cuda::Bottleneck<bf16>::Saved saved;
  check_text(text_of([&] { adapter.forward(cx, {}, y.view(), saved, nullptr, c); }), "expected Bottleneck::reserve for [3, 4] before");
  adapter.reserve(saved, 3);
  check_text(text_of([&] { adapter.backward(cx, cx, saved, {}, y.view(), c); }), "expected Bottleneck::ensure_grads before");
}

}  // namespace gpu_test::bottleneck
