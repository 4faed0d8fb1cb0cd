// Gradients of LoRA: central differences in double, and the fused float path against the double one.
//
// The loss is L = Σ y∘g, so dy = g. y is linear in each single number of A, B and x, hence the central difference
// (L(p+h) − L(p−h)) / 2h has no truncation error; what is left is rounding: with h = 2^-6 at most
// 2^6 · (N+8)·2^-53 · Σ|terms of L|, N the longest sum.
#include <cstring>

#include "peft/adapter_registry.hpp"
#include "peft/dense_linear.hpp"
#include "peft/lora.hpp"
#include "support/catch.hpp"
#include "support/central_differences.hpp"
#include "unit/methods/foreign_linears.hpp"
#include "unit/methods/lora_reference.hpp"

using namespace peft;
using namespace peft_test;

namespace {

constexpr double kStep = 0x1p-6;

double weighted_sum(const Matrix<double>& y, const Matrix<double>& g) {
  double sum = 0;
  for (Index i = 0; i < y.size(); ++i) sum += y.data()[i] * g.data()[i];
  return sum;
}

/// Compares `grad` with the central differences of loss() over `values`. `size` bounds Σ|terms of L|.
template <class Loss>
void check_gradient(VectorView<double> values, VectorView<const double> grad, double size, Index length, Loss&& loss) {
  const double tolerance = static_cast<double>(length + 8) * 0x1p-53 * size / kStep;
  check_differences(
      values, grad, [&](double& value) { return second_order_difference(value, kStep, loss); },
      [&](double) { return tolerance; });
}

void randomise(Matrix<double>& matrix, std::uint64_t seed) {
  const auto random = random_matrix<double>(matrix.rows(), matrix.cols(), seed);
  std::copy(random.flat().begin(), random.flat().end(), matrix.data());
}

/// Factors of a mask, from its bits.
Matrix<double> factors(const DropoutMask& dropout, Index rows, Index cols, float p) {
  Buffer<std::uint8_t> scratch;
  const kernels::MaskBits mask = dropout.bits(rows, cols, p, scratch, ExecutorRef());
  Matrix<double> result(rows, cols);
  for (Index i = 0; i < rows; ++i) {
    for (Index j = 0; j < cols; ++j) result(i, j) = static_cast<double>(detail::mask_factor(mask, i, j));
  }
  return result;
}

template <class L>
void check_lora(const L& base, Index rows, Index r, float p) {
  const Index in = base.in_features(), out = base.out_features();
  CAPTURE(rows, in, out, r, p);
  Lora<double> lora(in, out, r, 1.5, p);
  randomise(lora.a(), 1);
  randomise(lora.b(), 2);
  Matrix<double> x = random_matrix<double>(rows, in, 3);
  const Matrix<double> dy = random_matrix<double>(rows, out, 4);
  const DropoutMask dropout = p > 0 ? DropoutMask(DropoutKey{5, 6, 7, 8}) : DropoutMask();

  Matrix<double> y(rows, out), dx(rows, in);
  Lora<double>::Saved saved;
  const auto loss = [&] {
    Lora<double>::Saved fresh;
    Matrix<double> result(rows, out);
    lora.forward(base, x.view(), result.view(), fresh, dropout);
    return weighted_sum(result, dy);
  };
  lora.forward(base, x.view(), y.view(), saved, dropout);
  lora.backward(base, dy.view(), x.view(), saved, dx.view());

  const LoraCase reference{foreign::weight_of(base),
                           lora.a().clone(),
                           lora.b().clone(),
                           x.clone(),
                           dy.clone(),
                           factors(dropout, rows, in, p),
                           {},
                           1.5};
  const LoraResult want = lora_reference(reference);
  const double size = weighted_sum(want.y.magnitude, absolute(dy)) * 2;  // a step changes a factor by little
  const Index length = in + out + r + rows;
  check_gradient(lora.a().flat(), lora.grad_a().flat(), size, length, loss);
  check_gradient(lora.b().flat(), lora.grad_b().flat(), size, length, loss);
  check_gradient(x.flat(), dx.flat(), size, length, loss);
  check_close<double>(std::as_const(y).view(), want.y, length);

  // Again without the input's gradient: parameters' gradients double, and adding to dx doubles that.
  const Matrix<double> da = lora.grad_a().clone(), first_dx = dx.clone();
  lora.backward(base, dy.view(), x.view(), saved, MatrixView<double>());
  lora.backward(base, dy.view(), x.view(), saved, dx.view(), Accumulate::kAdd);
  for (Index i = 0; i < da.size(); ++i) REQUIRE(lora.grad_a().data()[i] == Approx(3 * da.data()[i]).margin(1e-12));
  for (Index i = 0; i < dx.size(); ++i) REQUIRE(dx.data()[i] == Approx(2 * first_dx.data()[i]).margin(1e-12));
  lora.zero_grad();
  for (const double value : lora.grad_b().flat()) REQUIRE(value == 0.0);
}

/// DenseLinear<double> with the accessor that the reference reads.
struct Dense : DenseLinear<double> {
  Dense(Index in, Index out) : DenseLinear<double>(random_matrix<double>(out, in, 50)) {}
  double weight(Index j, Index k) const { return DenseLinear<double>::weight()(j, k); }
};

}  // namespace

TEST_CASE("LoRA's gradients are the central differences") {
  for (const float p : {0.0f, 0.35f}) {
    check_lora(Dense(6, 5), 4, 3, p);
    check_lora(Dense(9, 4), 1, 1, p);                              // one row, rank 1
    check_lora(Dense(3, 4), 3, 7, p);                              // rank above both sides
    check_lora(Dense(17, 2), 0, 2, p);                             // no rows
    check_lora(foreign::WithBackward<double>(7, 5, 51), 3, 2, p);  // a host's three members and a backward
  }
}

TEST_CASE("AdaptedLinear's gradients are the central differences, with one adapter and several") {
  for (const float p : {0.0f, 0.4f}) {
    for (const int adapters : {1, 2, 3}) {
      CAPTURE(p, adapters);
      constexpr Index kRows = 4, kIn = 7, kOut = 5;
      AdaptedLinear<double> layer("model.q_proj", Dense(kIn, kOut));
      AdaptedLinear<double>* sites[] = {&layer};
      AdapterRegistry<double> registry;
      std::vector<std::pair<std::string, double>> weighted;
      for (int i = 0; i < adapters; ++i) {
        const std::string name = "adapter" + std::to_string(i);
        registry.add_adapter(
            name,
            {.r = 2 + i, .lora_alpha = 3, .target_modules = {"q_proj"}, .lora_dropout = p, .init_lora_weights = false},
            sites, static_cast<std::uint64_t>(i));
        weighted.emplace_back(name, i == 1 ? -0.5 : 1.0);
      }
      const TrainContext<double> context{.selection = registry.selection_of(weighted), .seed = 1, .step = 2};
      Matrix<double> x = random_matrix<double>(kRows, kIn, 3), dx(kRows, kIn);
      const Matrix<double> dy = random_matrix<double>(kRows, kOut, 4);
      const auto loss = [&] {
        AdaptedLinear<double>::Saved fresh;
        Matrix<double> y(kRows, kOut);
        layer.forward(x.view(), y.view(), fresh, context, ExecutorRef());
        return weighted_sum(y, dy);
      };
      AdaptedLinear<double>::Saved saved;
      Matrix<double> y(kRows, kOut);
      layer.forward(x.view(), y.view(), saved, context, ExecutorRef());
      layer.backward(dy.view(), x.view(), saved, dx.view(), Accumulate::kOverwrite, context, ExecutorRef());
      // |x|,|w|,|dy| are a few units, A and B below 1: Σ|terms| < rows·out·(in + Σr·in)·64.
      const double size = kRows * kOut * (kIn + 9 * kIn) * 64.0;
      check_gradient(x.flat(), dx.flat(), size, 32, loss);
      for (const auto& [name, weight] : weighted) {
        registry.for_each_parameter(name,
                                    [&](const ParameterInfo& info, VectorView<double> value, VectorView<double> grad) {
                                      CAPTURE(info.name);
                                      check_gradient(value, grad, size, 32, loss);
                                    });
      }
    }
  }
}

TEST_CASE("The fused path in float, bf16 and f16 is the double path to the types' rounding") {
  const auto run = [](auto tag, Index rows, Index in, Index out, Index r, float p) {
    using T = decltype(tag);
    CAPTURE(name_of(dtype_of<T>()), rows, in, out, r, p);
    auto weight = random_matrix<float>(out, in, 60);
    LoraCase reference{to_double(weight), {}, {}, {}, {}, {}, {}, 0.5};
    const DenseLinear<float> base(std::move(weight));
    const auto a = random_matrix<float>(r, in, 61), b = random_matrix<float>(out, r, 62);
    Lora<T> lora(in, out, r, 0.5, p);
    std::copy(a.flat().begin(), a.flat().end(), lora.a().data());
    std::copy(b.flat().begin(), b.flat().end(), lora.b().data());
    Matrix<T> x = random_matrix<T>(rows, in, 63, 0.5f);
    const Matrix<T> dy = random_matrix<T>(rows, out, 64, 0.5f);
    const DropoutMask dropout = p > 0 ? DropoutMask(DropoutKey{1, 2, 3, 4}) : DropoutMask();
    reference.a = to_double(a);
    reference.b = to_double(b);
    reference.x = to_double(x);
    reference.dy = to_double(dy);
    reference.keep = factors(dropout, rows, in, p);
    const LoraResult want = lora_reference(reference);

    Matrix<T> y(rows, out), dx(rows, in);
    typename Lora<T>::Saved saved;
    lora.forward(base, x.view(), y.view(), saved, dropout);
    lora.backward(base, dy.view(), x.view(), saved, dx.view());
    check_close<T>(std::as_const(y).view(), want.y, 2 * in + r);
    check_close<T>(std::as_const(dx).view(), want.dx, 2 * out + r);
    check_close<float>(lora.grad_a().view(), want.da, rows + out);
    check_close<float>(lora.grad_b().view(), want.db, rows + in);

    // The input's gradient may go over the input.
    lora.zero_grad();
    lora.backward(base, dy.view(), x.view(), saved, x.view());
    check_close<T>(std::as_const(x).view(), want.dx, 2 * out + r);
    check_close<float>(lora.grad_a().view(), want.da, rows + out);
  };
  for (const float p : {0.0f, 0.25f}) {
    run(float{}, 33, 70, 50, 8, p);
    run(float{}, 1, 130, 90, 4, p);
    run(float{}, 5, 16, 40, 20, p);
    run(bf16{}, 33, 70, 50, 8, p);
    run(f16{}, 33, 70, 50, 8, p);
    run(bf16{}, 1, 19, 23, 1, p);
  }
}

TEST_CASE(
    "Several adapters in training, each with its own mask: the fused path is the double path to float's rounding") {
  constexpr Index kRows = 12, kIn = 40, kOut = 30;
  const auto weight = random_matrix<float>(kOut, kIn, 70);
  const auto x = random_matrix<float>(kRows, kIn, 71), dy = random_matrix<float>(kRows, kOut, 72);
  struct Result {
    Matrix<double> y, dx;
    std::vector<Matrix<double>> grads;
  };
  const auto run = [&](auto tag, auto base) {
    using T = decltype(tag);
    AdaptedLinear<T> layer("q_proj", AnyLinear<T>(std::move(base)));
    AdaptedLinear<T>* sites[] = {&layer};
    AdapterRegistry<T> registry;
    const LoraConfig config{
        .r = 3, .lora_alpha = 6, .target_modules = {"q_proj"}, .lora_dropout = 0.4f, .init_lora_weights = false};
    registry.add_adapter("a", config, sites, 1);
    registry.add_adapter("b", config, sites, 2);
    const TrainContext<T> context{.selection = registry.selection_of({{"a", 1.0}, {"b", 0.5}}), .seed = 8};
    Matrix<T> tx(kRows, kIn), tdy(kRows, kOut), y(kRows, kOut), dx(kRows, kIn);
    std::copy(x.flat().begin(), x.flat().end(), tx.data());
    std::copy(dy.flat().begin(), dy.flat().end(), tdy.data());
    typename AdaptedLinear<T>::Saved saved;
    layer.forward(tx.view(), y.view(), saved, context, ExecutorRef());
    layer.backward(tdy.view(), tx.view(), saved, dx.view(), Accumulate::kOverwrite, context, ExecutorRef());
    Buffer<std::uint8_t> first, second;
    const auto mask_a = saved.adapters[0].dropout.bits(kRows, kIn, 0.4f, first, ExecutorRef());
    const auto mask_b = saved.adapters[1].dropout.bits(kRows, kIn, 0.4f, second, ExecutorRef());
    REQUIRE(std::memcmp(mask_a.bits, mask_b.bits, kRows * kIn / 8) != 0);
    Result result{to_double(y), to_double(dx), {}};
    for (const char* name : {"a", "b"}) {
      Lora<T>& lora = *registry.adapter(name)->find(layer.module());
      result.grads.push_back(to_double(lora.grad_a()));
      result.grads.push_back(to_double(lora.grad_b()));
    }
    return result;
  };
  Matrix<double> same(kOut, kIn);
  std::copy(weight.flat().begin(), weight.flat().end(), same.data());
  const Result want = run(double{}, DenseLinear<double>(std::move(same)));
  const Result got = run(float{}, DenseLinear<float>(weight.clone()));
  // Sums of at most in + out products of a few units each: 100·u·Σ|terms|, with Σ|terms| below 40·64.
  const double tolerance = 100 * 0x1p-24 * 40 * 64;
  const auto check = [&](const Matrix<double>& x_got, const Matrix<double>& x_want) {
    for (Index i = 0; i < x_got.size(); ++i) REQUIRE(std::abs(x_got.data()[i] - x_want.data()[i]) < tolerance);
  };
  check(got.y, want.y);
  check(got.dx, want.dx);
  for (std::size_t i = 0; i < 4; ++i) check(got.grads[i], want.grads[i]);
}
