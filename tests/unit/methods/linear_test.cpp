// DenseLinear, AnyLinear, the refinements of LinearLike on foreign types, and views ↔ Eigen.
#include <cstring>
#include <memory>

#include "peft/any_linear.hpp"
#include "peft/core/eigen.hpp"
#include "peft/dense_linear.hpp"
#include "peft/lora.hpp"
#include "support/catch.hpp"
#include "unit/methods/foreign_linears.hpp"
#include "unit/methods/lora_reference.hpp"

using namespace peft;
using namespace peft_test;

// Each archetype has its refinement and no other.
static_assert(PanelSource<foreign::StridedHalf> && !BackwardLinear<foreign::StridedHalf> &&
              !FusedLowRank<foreign::StridedHalf>);
static_assert(PanelSource<foreign::Conv1D> && PanelSource<foreign::FourBit> && !MergeableLinear<foreign::FourBit>);
static_assert(LinearLike<foreign::ForwardOnly<float>> && !ExecutorForward<foreign::ForwardOnly<float>> &&
              !PanelSource<foreign::ForwardOnly<float>> && !BackwardLinear<foreign::ForwardOnly<float>>);
static_assert(ExecutorForward<foreign::WithExecutor> && !BackwardLinear<foreign::WithExecutor>);
static_assert(BackwardLinear<foreign::WithBackward<float>> && !ExecutorBackward<foreign::WithBackward<float>> &&
              !PanelSource<foreign::WithBackward<float>>);
static_assert(ExecutorBackward<foreign::WithExecutorBackward> && !BackwardLinear<foreign::WithExecutorBackward>);
static_assert(FusedLowRank<foreign::WithFusedTerms> && !FusedLowRank<foreign::WithBackward<float>>);
static_assert(MergeableLinear<foreign::WithMerge> && !MergeableLinear<foreign::ForwardOnly<float>>);
static_assert(WeightGrad<foreign::WithWeightGrad> && !WeightGrad<foreign::ForwardOnly<float>>);
static_assert(TrainableBase<foreign::Conv1D> && !TrainableBase<foreign::ForwardOnly<float>>);

namespace {

constexpr Index kIn = 21, kOut = 13, kRows = 5, kRank = 3;

Matrix<double> ones(Index rows, Index cols) {
  Matrix<double> result(rows, cols);
  for (double& value : result.flat()) value = 1.0;
  return result;
}

template <class T>
struct Problem {
  Matrix<T> x = random_matrix<T>(kRows, kIn, 11);
  Matrix<T> dy = random_matrix<T>(kRows, kOut, 12);
  Lora<T> lora{kIn, kOut, kRank, 0.75};
  Problem() {
    const auto a = random_matrix<float>(kRank, kIn, 13);
    const auto b = random_matrix<float>(kOut, kRank, 14);
    std::copy(a.flat().begin(), a.flat().end(), lora.a().data());
    std::copy(b.flat().begin(), b.flat().end(), lora.b().data());
  }
  LoraCase reference(Matrix<double> w, std::vector<double> bias) const {
    return {std::move(w),  to_double(lora.a()), to_double(lora.b()), to_double(x),
            to_double(dy), ones(kRows, kIn),    std::move(bias),     0.75};
  }
};

// Forward (and backward) of Lora over `base` against the reference.
template <class T, class L>
void check_over(const L& base, std::vector<double> bias, bool backward) {
  Problem<T> p;
  const LoraResult want = lora_reference(p.reference(foreign::weight_of(base), std::move(bias)));
  Matrix<T> y(kRows, kOut);
  typename Lora<T>::Saved saved;
  p.lora.forward(base, p.x.view(), y.view(), saved, DropoutMask());
  check_close<T>(std::as_const(y).view(), want.y, 2 * kIn + kRank);
  if constexpr (TrainableBase<L, T>) {
    REQUIRE(backward);
    Matrix<T> dx(kRows, kIn);
    p.lora.backward(base, p.dy.view(), p.x.view(), saved, dx.view());
    check_close<T>(std::as_const(dx).view(), want.dx, 2 * kOut + kRank);
    check_close<float>(p.lora.grad_a().view(), want.da, kRows + kOut);
    check_close<float>(p.lora.grad_b().view(), want.db, kRows + kIn);
  }
}

}  // namespace

TEST_CASE("DenseLinear multiplies in every storage and activation type") {
  const auto run = [](auto weight_tag, auto activation_tag) {
    using W = decltype(weight_tag);
    using T = decltype(activation_tag);
    auto weight = random_matrix<W>(kOut, kIn, 1);
    const Matrix<double> w = to_double(weight);
    Buffer<Accumulator<W>> bias(kOut);
    std::vector<double> bias_reference;
    for (Index j = 0; j < kOut; ++j) {
      bias[j] = static_cast<Accumulator<W>>(0.25 * static_cast<double>(j));
      bias_reference.push_back(0.25 * static_cast<double>(j));
    }
    DenseLinear<W> linear(std::move(weight), std::move(bias));
    REQUIRE(linear.in_features() == kIn);
    REQUIRE(linear.out_features() == kOut);
    REQUIRE_FALSE(linear.is_mapped());

    const auto x = random_matrix<T>(kRows, kIn, 2);
    const auto dy = random_matrix<T>(kRows, kOut, 3);
    Measured y = product(to_double(x), false, w, true);
    for (Index i = 0; i < kRows; ++i) {
      for (Index j = 0; j < kOut; ++j)
        y.add(i, j, bias_reference[static_cast<std::size_t>(j)], bias_reference[static_cast<std::size_t>(j)]);
    }
    // Rows further apart than they are long, on both sides.
    Matrix<T> wide = Matrix<T>::zeros(kRows, kOut + 4);
    linear.forward(x.view(), wide.view().column_range(2, kOut));
    check_close<T>(wide.view().column_range(2, kOut), y, kIn + 1);
    REQUIRE(static_cast<double>(static_cast<Accumulator<T>>(wide(0, 1))) == 0.0);
    REQUIRE(static_cast<double>(static_cast<Accumulator<T>>(wide(kRows - 1, kOut + 2))) == 0.0);

    Matrix<T> dx(kRows, kIn);
    linear.backward_input(dy.view(), dx.view());
    const Measured want_dx = product(to_double(dy), false, w, false);
    check_close<T>(std::as_const(dx).view(), want_dx, kOut);
    linear.backward_input(dy.view(), dx.view(), Accumulate::kAdd);
    Measured twice = product(to_double(dy), false, w, false, 2.0);
    check_close<T>(std::as_const(dx).view(), twice, 2 * kOut);

    linear.backward_weight(dy.view(), x.view());
    linear.backward_weight(dy.view(), x.view());
    const Measured dw = product(to_double(dy), true, to_double(x), false, 2.0);
    check_close<Accumulator<W>>(linear.weight_grad().view(), dw, 2 * kRows);
  };
  run(float{}, float{});
  run(float{}, bf16{});
  run(float{}, f16{});
  run(bf16{}, float{});
  run(bf16{}, bf16{});
  run(f16{}, float{});
  run(f16{}, f16{});
  run(double{}, double{});
}

TEST_CASE("DenseLinear views mapped memory and keeps it alive") {
  auto memory = std::make_shared<Matrix<bf16>>(random_matrix<bf16>(kOut, kIn + 3, 4));
  const MatrixView<const bf16> view = std::as_const(*memory).view().column_range(1, kIn);
  const std::weak_ptr<Matrix<bf16>> watch = memory;
  {
    DenseLinear<bf16> linear(view, memory);
    memory.reset();
    REQUIRE(linear.is_mapped());
    const auto x = random_matrix<float>(kRows, kIn, 5);
    Matrix<float> y(kRows, kOut);
    linear.forward(x.view(), y.view());
    check_close<float>(std::as_const(y).view(), product(to_double(x), false, to_double(view), true), kIn);
    REQUIRE_FALSE(watch.expired());
  }
  REQUIRE(watch.expired());
}

TEST_CASE("DenseLinear's panels are its weight, in both orders") {
  const DenseLinear<f16> linear(random_matrix<f16>(kOut, kIn, 6));
  constexpr Index kLd = 9;
  float panel[4 * kLd];
  linear.fill_panel(2, 7, 3, 4, panel, kLd, Order::kForward);
  const kernels::PanelFill fill = linear.panel_fill(Order::kBackward);
  float backward[4 * kLd];
  fill.fill(fill.context, 3, 4, 2, 4, backward, kLd);
  for (Index i = 0; i < 4; ++i) {
    for (Index j = 0; j < 7; ++j) REQUIRE(panel[i * kLd + j] == static_cast<float>(linear.weight()(2 + j, 3 + i)));
    for (Index j = 0; j < 4; ++j) REQUIRE(backward[i * kLd + j] == static_cast<float>(linear.weight()(2 + i, 3 + j)));
  }
  REQUIRE(linear.panel_fill(Order::kForward).dense.transposed);
  REQUIRE_FALSE(fill.dense.transposed);
  REQUIRE(fill.dense.type == DType::kF16);
}

TEST_CASE("Shapes that do not fit are refused with their numbers") {
  const DenseLinear<float> linear(random_matrix<float>(kOut, kIn, 7));
  Matrix<float> x(2, kIn), y(2, kOut);
  const auto message = [](auto&& call) -> std::string {
    try {
      call();
    } catch (const ShapeError& error) {
      return error.what();
    }
    return "nothing was thrown";
  };
  REQUIRE(message([&] { linear.forward(x.view().column_range(0, 4), y.view()); }) ==
          "DenseLinear::forward: x is [2, 4]; expected [2, 21]");
  REQUIRE(message([&] { linear.forward(x.view(), y.view().row_range(0, 1)); }) ==
          "DenseLinear::forward: y is [1, 13]; expected [2, 13]");
  REQUIRE(message([&] { linear.forward(MatrixView<const float>(x.data(), 2, kIn, 3), y.view()); }) ==
          "DenseLinear::forward: x has 21 columns and a row stride of 3; expected a stride of at least 21");
  REQUIRE(message([&] { linear.backward_input(y.view(), y.view()); }) ==
          "DenseLinear::backward_input: dx is [2, 13]; expected [2, 21]");
  REQUIRE(message([&] { DenseLinear<float>(Matrix<float>(2, 2), Buffer<float>(3)); }) ==
          "DenseLinear: bias has 3 elements; expected out_features = 2 or none");
}

TEST_CASE("No rows is no work") {
  const DenseLinear<float> linear(random_matrix<float>(kOut, kIn, 8));
  Matrix<float> none(0, kIn), result(0, kOut);
  linear.forward(none.view(), result.view());
  linear.backward_input(result.view(), none.view());
  Lora<float> lora(kIn, kOut, 2, 1.0);
  Lora<float>::Saved saved;
  lora.forward(linear, none.view(), result.view(), saved, DropoutKey{});
  lora.backward(linear, result.view(), none.view(), saved, none.view());
  for (const float value : lora.grad_a().flat()) REQUIRE(value == 0.0f);
}

TEST_CASE("A foreign panel source gets fused forward and backward in any storage") {
  const foreign::StridedHalf half(kIn, kOut, 21);
  const std::vector<double> bias(half.bias_values.begin(), half.bias_values.end());
  check_over<float>(half, bias, true);
  check_over<bf16>(half, bias, true);
  check_over<f16>(half, bias, true);
  check_over<float>(foreign::Conv1D(kIn, kOut, 22), {}, true);
  check_over<bf16>(foreign::Conv1D(kIn, kOut, 22), {}, true);
  check_over<float>(foreign::FourBit(kIn, kOut, 23), {}, true);
}

TEST_CASE("A forward-only layer is adapted for inference") {
  const foreign::ForwardOnly<float> base(kIn, kOut, 24);
  check_over<float>(base, {}, false);
  REQUIRE(base.forward_calls == 1);
}

TEST_CASE("A layer that takes an executor is given it") {
  const foreign::WithExecutor base(kIn, kOut, 25);
  check_over<float>(base, {}, false);
  REQUIRE(base.executor_calls == 1);
  REQUIRE(base.forward_calls == 0);
}

TEST_CASE("A layer's own backward_input is used, overwriting and adding") {
  const foreign::WithBackward<float> base(kIn, kOut, 26);
  check_over<float>(base, {}, true);
  REQUIRE(base.backward_calls == 1);
  const foreign::WithExecutorBackward direct(kIn, kOut, 27);
  check_over<float>(direct, {}, true);
  REQUIRE(direct.backward_calls == 1);

  // Adding: twice the same gradient.
  Problem<float> p;
  const auto add_twice = [&](const auto& layer) {
    const LoraResult want = lora_reference(p.reference(foreign::weight_of(layer), {}));
    Matrix<float> y(kRows, kOut), dx(kRows, kIn);
    Lora<float>::Saved saved;
    p.lora.forward(layer, p.x.view(), y.view(), saved, DropoutMask());
    p.lora.backward(layer, p.dy.view(), p.x.view(), saved, dx.view());
    p.lora.backward(layer, p.dy.view(), p.x.view(), saved, dx.view(), Accumulate::kAdd);
    Measured twice(kRows, kIn);
    accumulate(twice, want.dx);
    accumulate(twice, want.dx);
    check_close<float>(std::as_const(dx).view(), twice, 4 * kOut);
  };
  add_twice(base);
  add_twice(direct);
  add_twice(foreign::Conv1D(kIn, kOut, 28));
}

TEST_CASE("A layer that fuses low-rank terms itself is asked to: several adapters, runs of rows, different ranks") {
  const foreign::WithFusedTerms base(kIn, kOut, 29);
  check_over<float>(base, {}, true);
  REQUIRE(base.fused_calls == 1);
  REQUIRE(base.last_terms == 1);

  // The library's own route gives the same: panels, and a layer that knows of no terms.
  const auto x = random_matrix<float>(kRows, kIn, 30);
  const auto s1 = random_matrix<float>(2, 2, 31), b1 = random_matrix<float>(kOut, 2, 32);
  const auto s2 = random_matrix<float>(3, 4, 33), b2 = random_matrix<float>(kOut, 4, 34);
  const auto s3 = random_matrix<float>(kRows, 1, 35), b3 = random_matrix<float>(kOut, 1, 36);
  const LowRankTerm terms[] = {{0, 2, s1, b1, 0.5f}, {1, 3, s2, b2, 2.0f}, {0, kRows, s3, b3, -1.0f}};
  const auto want_over = [&](const Matrix<double>& w) {
    Measured want = product(to_double(x), false, w, true);
    for (const LowRankTerm& term : terms) {
      const Measured part =
          product(to_double<float>(term.s), false, to_double<float>(term.b), true, static_cast<double>(term.scale));
      for (Index i = 0; i < term.rows; ++i) {
        for (Index j = 0; j < kOut; ++j) want.add(term.first_row + i, j, part.value(i, j), part.magnitude(i, j));
      }
    }
    return want;
  };
  const auto check = [&](const auto& layer) {
    Matrix<float> y(kRows, kOut);
    forward_low_rank<float>(layer, x.view(), terms, y.view(), ExecutorRef());
    check_close<float>(std::as_const(y).view(), want_over(foreign::weight_of(layer)), kIn + 7);
  };
  check(base);
  check(foreign::Conv1D(kIn, kOut, 37));
  check(foreign::ForwardOnly<float>(kIn, kOut, 38));
}

TEST_CASE("Merge and weight gradient of a foreign layer, through AnyLinear") {
  AnyLinear<float> mergeable(foreign::WithMerge(kIn, kOut, 40));
  REQUIRE(mergeable.can_merge());
  REQUIRE_FALSE(mergeable.has_panels());
  REQUIRE_FALSE(mergeable.can_train());
  const Matrix<float> before = mergeable.get_if<foreign::WithMerge>()->w.clone();
  Problem<float> p;
  const MergeTerm term{p.lora.a(), p.lora.b(), 0.75f};
  AnyMergeUndo undo = mergeable.merge({&term, 1});
  Matrix<float> y(kRows, kOut), merged(kRows, kOut);
  p.lora.forward(foreign::ForwardOnly<float>(kIn, kOut, 40), p.x.view(), y.view());
  mergeable.forward(p.x.view(), merged.view());
  for (Index i = 0; i < y.size(); ++i) REQUIRE(merged.data()[i] == Approx(y.data()[i]).margin(1e-4));
  mergeable.restore(std::move(undo));
  REQUIRE(std::memcmp(mergeable.get_if<foreign::WithMerge>()->w.data(), before.data(), sizeof(float) * kIn * kOut) ==
          0);

  foreign::WithWeightGrad host_layer(kIn, kOut, 41);
  AnyLinear<float> graded = AnyLinear<float>::borrow(host_layer);
  REQUIRE(graded.has_weight_grad());
  graded.backward_weight(p.dy.view(), p.x.view());
  check_close<float>(host_layer.grad.view(), product(to_double(p.dy), true, to_double(p.x), false), kRows);
}

TEST_CASE("AnyLinear computes what the layer inside computes, and refuses what it lacks by name") {
  Problem<float> p;
  const auto check = [&](auto layer) {
    const Matrix<double> w = foreign::weight_of(layer);
    std::vector<double> bias;
    if constexpr (PanelSource<decltype(layer)>) bias.assign(layer.bias().begin(), layer.bias().end());
    const LoraResult want = lora_reference(p.reference(foreign::weight_of(layer), bias));
    AnyLinear<float> any(std::move(layer));
    Matrix<float> y(kRows, kOut), dx(kRows, kIn);
    Lora<float>::Saved saved;
    p.lora.forward(any, p.x.view(), y.view(), saved, DropoutMask());
    check_close<float>(std::as_const(y).view(), want.y, 2 * kIn + kRank);
    if (any.can_train()) {
      p.lora.backward(any, p.dy.view(), p.x.view(), saved, dx.view());
      check_close<float>(std::as_const(dx).view(), want.dx, 2 * kOut + kRank);
    } else {
      REQUIRE_THROWS_WITH(p.lora.backward(any, p.dy.view(), p.x.view(), saved, dx.view()),
                          Catch::Contains("peft::PanelSource") && Catch::Contains("peft::BackwardLinear"));
    }
    if (any.has_panels()) {
      const Matrix<float> copy = any.merged_weight({});
      for (Index i = 0; i < copy.size(); ++i) REQUIRE(static_cast<double>(copy.data()[i]) == w.data()[i]);
    } else {
      REQUIRE_THROWS_WITH(any.merged_weight({}), Catch::Contains("peft::PanelSource"));
    }
  };
  check(foreign::StridedHalf(kIn, kOut, 50));
  check(foreign::Conv1D(kIn, kOut, 51));
  check(foreign::FourBit(kIn, kOut, 52));
  check(foreign::ForwardOnly<float>(kIn, kOut, 53));
  check(foreign::WithBackward<float>(kIn, kOut, 54));
  check(foreign::WithFusedTerms(kIn, kOut, 55));
  AnyLinear<float> plain(foreign::ForwardOnly<float>(kIn, kOut, 56));
  REQUIRE_THROWS_WITH(plain.merge({}), Catch::Contains("MergeableLinear"));
  REQUIRE_THROWS_WITH(plain.backward_weight(p.dy.view(), p.x.view()), Catch::Contains("WeightGrad"));
  REQUIRE(plain.get_if<foreign::WithMerge>() == nullptr);
}

TEST_CASE("Views and Eigen share memory both ways") {
  Matrix<float> matrix = random_matrix<float>(4, 6, 60);
  auto map = as_eigen(matrix.view().column_range(1, 3));
  REQUIRE(map.rows() == 4);
  REQUIRE(map.cols() == 3);
  map(2, 1) = 42.0f;
  REQUIRE(matrix(2, 2) == 42.0f);
  const EigenMatrix<float> gram = as_eigen(std::as_const(matrix).view()) * as_eigen(matrix.view()).transpose();
  REQUIRE(gram(0, 0) > 0.0f);
  as_eigen(matrix.flat())[0] = -1.0f;
  REQUIRE(matrix(0, 0) == -1.0f);

  EigenMatrix<float> mine = EigenMatrix<float>::Constant(3, 5, 2.0f);
  const MatrixView<float> view = view_of(mine);
  view(1, 4) = 7.0f;
  REQUIRE(mine(1, 4) == 7.0f);
  auto block = mine.block(1, 2, 2, 3);
  const MatrixView<float> part = view_of(block);
  REQUIRE(part.stride == 5);
  REQUIRE(part(0, 2) == 7.0f);
  const EigenMatrix<float>& constant = mine;
  static_assert(std::is_same_v<decltype(view_of(constant)), MatrixView<const float>>);
  const DenseLinear<float> linear(view_of(constant), std::make_shared<int>(0));
  EigenMatrix<float> x = EigenMatrix<float>::Random(2, 5), y(2, 3);
  linear.forward(view_of(x), view_of(y));
  REQUIRE((y - x * mine.transpose()).cwiseAbs().maxCoeff() < 1e-4f);
}
