#pragma once
/// Batches of mixed adapters on the GPU: each row against its own adapter's product, whatever else is in the batch.

#include "gpu_test.hpp"

namespace gpu_test::adapters {
using cuda::Transpose;

template <class T>
void test_batch(Index out, Index in, const std::vector<Index>& ranks, Index rows) {
  cuda::Context& c = context();
  std::vector<cuda::Lora<T>> loras;
  std::vector<const cuda::Lora<T>*> pointers;
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    loras.emplace_back(Factors(in, out, ranks[i], 1.5, 0.0f, static_cast<std::uint32_t>(10 * i + 1)), c);
  }
  for (std::size_t i = 0; i < ranks.size(); ++i)
    pointers.push_back(i == 1 ? nullptr : &loras[i]);  // one leaves the layer alone
  const Index most_rank = *std::max_element(ranks.begin(), ranks.end());
  cuda::DenseLinear<T> base(in, out);
  fill(base.weight(), 3, 0.05f);
  const cuda::DenseLinear<T>& layer = base;
  cuda::AdapterRowMap map(rows, static_cast<Index>(ranks.size()));
  cuda::AdapterBatch<T> batch(in, out, static_cast<Index>(ranks.size()), most_rank);
  c.reserve(batch.scratch_bytes(layer, rows));
  std::vector<std::int32_t> of;
  for (Index i = 0; i < rows; ++i) of.push_back(static_cast<std::int32_t>(i * 7 % (static_cast<Index>(ranks.size()) + 1)) - 1);
  map.set(of, c);
  batch.set(pointers, map, c);
  const cuda::DeviceMatrix<T> x = random_matrix<T>(rows, in, 5, 1.0f);
  cuda::DeviceMatrix<T> y(rows, out), plain(rows, out);
  batch.forward(layer, x.view(), map, y.view(), c);
  layer.forward(x.view(), plain.view(), c);
  const std::string what = fmt::format("{} [{}, {}], {} adapters, {} rows", type_name<T>(), out, in, ranks.size(), rows);
  const std::vector<float> got = host_copy(y.view()), without = host_copy(plain.view());

  // y = (rounded) base + scale·S·Bᵀ with S rounded to T.
  std::vector<float> want = without;
  const std::vector<float> hx = host_copy(x.view());
  const double u = unit_roundoff<T>();
  for (std::size_t q = 0; q < ranks.size(); ++q) {
    if (pointers[q] == nullptr) continue;
    const std::vector<float> a = host_copy(loras[q].a_copy()), b = host_copy(loras[q].b_copy());
    const auto r = static_cast<std::size_t>(ranks[q]), k = static_cast<std::size_t>(in), n = static_cast<std::size_t>(out);
    for (std::size_t i = 0; i < of.size(); ++i) {
      if (of[i] != static_cast<std::int32_t>(q)) continue;
      std::vector<double> s(r);
      for (std::size_t p = 0; p < r; ++p) {
        for (std::size_t j = 0; j < k; ++j) s[p] += double{hx[i * k + j]} * double{a[p * k + j]};
      }
      for (std::size_t j = 0; j < n; ++j) {
        double sum = 0;
        for (std::size_t p = 0; p < r; ++p) sum += s[p] * double{b[j * r + p]};
        want[i * n + j] += static_cast<float>(1.5 * sum);
      }
    }
  }
  const double s_size = 3.0 * std::sqrt(static_cast<double>(in)) * 0.05 / 1.7;
  check_close(what, got, want, out, 1.01 * u, 1.5 * sum_tolerance(most_rank, s_size, 0.1, u) + sum_tolerance(in, 0.05, 0.1));
  for (std::size_t i = 0; i < of.size(); ++i) {
    if (of[i] >= 0 && pointers[static_cast<std::size_t>(of[i])] != nullptr) continue;
    const auto n = static_cast<std::size_t>(out);
    check_that(
        std::equal(got.begin() + static_cast<std::ptrdiff_t>(i * n), got.begin() + static_cast<std::ptrdiff_t>((i + 1) * n),
                   without.begin() + static_cast<std::ptrdiff_t>(i * n)),
        "{}: row {} has no adapter and is not the base's", what, i);
  }
  // Launches that reach over all that the map may hold give the same bits.
  y.fill_zero(c.stream());
  batch.forward(layer, x.view(), map, y.view(), c, cuda::AdapterBatch<T>::Reach::kCapacity);
  check_that(host_copy(y.view()) == got, "{}: with kCapacity the bits are others", what);
}

PEFT_GPU_TEST(adapter_batches) {
  const auto all = [](auto zero) {
    using T = decltype(zero);
    test_batch<T>(96, 80, {8, 4, 16, 1}, 23);
    if (kIsEmulated) return;
    test_batch<T>(130, 200, {5, 8, 64}, 70);
    test_batch<T>(64, 64, {16, 16}, 1);
  };
  all(float{}), all(f16{}), all(bf16{});
}

#ifndef PEFT_CUDA_EMULATOR
PEFT_GPU_TEST(adapter_batches_of_a_model) {
  test_batch<f16>(4096, 4096, {8, 16, 16, 32, 64, 8}, 48);
  test_batch<bf16>(4096, 4096, {8, 16, 16, 32, 64, 8}, 48);
}
#endif

}  // namespace gpu_test::adapters
