#pragma once
/// AdamW on the GPU against the CPU's: the same numbers in 32 and in 8 bits, paged or not, and after a restart.

#include <utility>

#include "gpu_test.hpp"

namespace gpu_test::adamw {

/// The same parameters on both sides.
struct Both {
  struct One {
    std::string name;
    Index rows, cols;
    bool decay;
    std::vector<float> value, grad;
    cuda::DeviceBuffer<float> device_value, device_grad;
  };
  std::vector<One> all;

  void add(std::string name, Index rows, Index cols, bool decay) {
    One one{std::move(name), rows, cols, decay, {}, {}, {}, {}};
    const auto seed = static_cast<std::uint32_t>(all.size() + 1);
    for (Index i = 0; i < rows * cols; ++i) one.value.push_back(hashed(seed, static_cast<std::uint64_t>(i)));
    one.grad.resize(one.value.size());
    one.device_value = cuda::DeviceBuffer<float>(rows * cols);
    one.device_grad = cuda::DeviceBuffer<float>(rows * cols);
    cuda::upload(VectorView<const float>(one.value.data(), rows * cols), one.device_value.device_view(), context().stream());
    all.push_back(std::move(one));
  }
  void new_gradients(std::uint32_t step) {
    for (One& one : all) {
      for (std::size_t i = 0; i < one.grad.size(); ++i) one.grad[i] = 0.1f * hashed(1000 + step, i) * hashed(7, i);
      const auto n = static_cast<Index>(one.grad.size());
      cuda::upload(VectorView<const float>(one.grad.data(), n), one.device_grad.device_view(), context().stream());
    }
  }
  struct Host {
    Both& both;
    template <class Visitor>
    void for_each_parameter(Visitor&& visit) {
      for (One& one : both.all) {
        const auto n = static_cast<Index>(one.value.size());
        visit(ParameterInfo{one.name, ParameterRole::kOther, one.decay, one.rows, one.cols},
              VectorView<float>(one.value.data(), n), VectorView<float>(one.grad.data(), n));
      }
    }
  };
  struct Device {
    Both& both;
    template <class Visitor>
    void for_each_parameter(Visitor&& visit) {
      for (One& one : both.all) {
        visit(ParameterInfo{one.name, ParameterRole::kOther, one.decay, one.rows, one.cols}, one.device_value.device_view(),
              one.device_grad.device_view());
      }
    }
  };
};

template <class Optimizer>
void test_steps(std::string_view what, int bits, Index budget) {
  cuda::Context& c = context();
  AdamWConfig config;
  config.weight_decay = 0.01;
  config.optim_bits = bits;
  Both both;
  both.add("a", 64, 100, true);
  both.add("bias", 1, 77, false);
  both.add("b", 80, 64, true);
  both.add("c", 1, 1, true);
  Both::Host host{both};
  Both::Device device{both};
  peft::AdamW<float> wanted(config);
  Optimizer optimizer(config, budget);
  for (std::uint32_t step = 0; step < 6; ++step) {
    both.new_gradients(step);
    if (step == 3) {  // a restart
      const cuda::AdamWSnapshot saved = optimizer.snapshot(c);
      Optimizer fresh(config, budget);
      fresh.restore(saved.moments, saved.steps, c);
      optimizer = std::move(fresh);
    }
    wanted.step(host, 1e-2, 0.5);
    optimizer.step(device, 1e-2, 0.5, c);
    c.synchronize();
  }
  check_that(optimizer.steps() == wanted.steps(), "{}: {} steps instead of {}", what, optimizer.steps(), wanted.steps());
  Index differing = 0;
  for (Both::One& one : both.all) {
    std::vector<float> got(one.value.size());
    cuda::download(std::as_const(one.device_value).device_view(), VectorView<float>(got.data(), static_cast<Index>(got.size())),
                   c.stream());
    for (std::size_t i = 0; i < got.size(); ++i) differing += got[i] != one.value[i] ? 1 : 0;
    // Without a fused multiply-add (the scalar kernels) the CPU rounds otherwise; a code of 8 bits may then be its neighbour.
    check_close(fmt::format("{}: {}", what, one.name), got, one.value, one.cols, 1e-5, bits == 8 ? 1e-3 : 1e-6);
  }
  std::printf("  %s: %lld elements have other bits than the CPU's\n", std::string(what).c_str(),
              static_cast<long long>(differing));
}

PEFT_GPU_TEST(adamw_is_the_cpus) {
  constexpr Index kAll = Index{1} << 40;
  test_steps<cuda::AdamW>("32 bits", 32, kAll);
  test_steps<cuda::AdamW>("8 bits", 8, kAll);
  test_steps<cuda::PagedAdamW>("paged, 32 bits", 32, 0);
  test_steps<cuda::PagedAdamW>("paged, 8 bits", 8, 0);
  test_steps<cuda::PagedAdamW>("managed, all on the device", 32, kAll);
}

PEFT_GPU_TEST(gradients_are_clipped_on_the_device) {
  cuda::Context& c = context();
  Both both;
  both.add("a", 64, 100, true);
  both.add("b", 1, 77, false);
  both.new_gradients(1);
  double sum = 0;
  for (const Both::One& one : both.all) {
    for (const float g : one.grad) sum += double{g} * double{g};
  }
  Both::Host host{both};
  Both::Device device{both};
  cuda::GradientNorm norm;
  norm.prepare(device, c);
  norm.launch(0.5f, c);
  const double want = std::sqrt(sum), got = static_cast<double>(norm.norm(c));
  check_that(std::fabs(got - want) < 1e-5 * want, "the norm is {}; expected {}", got, want);
  check_that(want > 0.5, "the norm {} needs no clipping", want);
  // With the factor the optimizer does what the CPU's does with that scale.
  peft::AdamW<float> wanted;
  cuda::AdamW optimizer;
  optimizer.set_clip(norm.factor());
  wanted.step(host, 1e-2, 0.5 / (want + 1e-6));
  optimizer.step(device, 1e-2, 1.0, c);
  for (Both::One& one : both.all) {
    const auto n = static_cast<Index>(one.value.size());
    std::vector<float> value(one.value.size());
    cuda::download(std::as_const(one.device_value).device_view(), VectorView<float>(value.data(), n), c.stream());
    check_close("clipped: " + one.name, value, one.value, one.cols, 1e-5, 1e-6);
  }
}

PEFT_GPU_TEST(adamw_refuses_other_parameters) {
  cuda::Context& c = context();
  Both both, other;
  both.add("a", 4, 4, true);
  other.add("b", 4, 4, true);
  Both::Device device{both}, wrong{other};
  cuda::AdamW optimizer;
  optimizer.step(device, 1e-3, 1.0, c);
  bool threw = false;
  try {
    optimizer.step(wrong, 1e-3, 1.0, c);
  } catch (const ConfigError&) {
    threw = true;
  }
  check_that(threw, "another set of parameters was taken");
}

}  // namespace gpu_test::adamw
