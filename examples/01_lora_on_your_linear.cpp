// LoRA on a linear layer of your own: the layer has three members, the library knows nothing else of it.
// The task: your layer computes y = x·Wᵀ, but the world wants y = x·(W + D)ᵀ with D of rank 2. W stays frozen; a rank-2
// update learns D from examples.
#include <peft/lora.hpp>

#include <cstdio>
#include <vector>

namespace {

// Your layer. Weights are stored however you like; here as columns.
class YourLinear {
 public:
  using value_type = float;  // of the activations
  YourLinear(peft::Index in, peft::Index out) : in_(in), out_(out), columns_(static_cast<std::size_t>(in * out)) {
    peft::Philox random(1);
    for (float& value : columns_) value = 0.3f * random.normal();
  }
  peft::Index in_features() const { return in_; }
  peft::Index out_features() const { return out_; }
  void forward(peft::MatrixView<const float> x, peft::MatrixView<float> y) const {
    for (peft::Index i = 0; i < y.rows; ++i) {
      for (peft::Index j = 0; j < out_; ++j) {
        y(i, j) = 0;
        for (peft::Index k = 0; k < in_; ++k) y(i, j) += x(i, k) * columns_[static_cast<std::size_t>(k * out_ + j)];
      }
    }
  }

 private:
  peft::Index in_, out_;
  std::vector<float> columns_;
};
static_assert(peft::LinearLike<YourLinear>);

void fill_normal(peft::Matrix<float>& matrix, std::uint64_t seed) {
  peft::Philox random(seed);
  for (float& value : matrix.flat()) value = random.normal();
}

}  // namespace

int main() {
  constexpr peft::Index kIn = 24, kOut = 16, kRows = 64;
  constexpr int kSteps = 100;
  constexpr float kLearningRate = 0.05f;
  const YourLinear base(kIn, kOut);

  // The world: the same layer with an update of rank 2 that we pretend not to know.
  peft::Lora world(kIn, kOut, 2, 0.2);
  fill_normal(world.a(), 2);
  fill_normal(world.b(), 3);

  peft::Lora lora(kIn, kOut, peft::LoraConfig{.r = 2, .lora_alpha = 2}, /*seed=*/4);
  peft::Lora<>::Saved saved;
  peft::Matrix<float> x(kRows, kIn), y(kRows, kOut), wanted(kRows, kOut);
  for (int step = 0; step <= kSteps; ++step) {
    fill_normal(x, 100 + static_cast<std::uint64_t>(step));
    world.forward(base, x.view(), wanted.view());

    // Forward, loss = mean of squares, backward into the update's gradients; dy overwrites y.
    lora.forward(base, x.view(), y.view(), saved);
    double loss = 0;
    for (peft::Index i = 0; i < y.size(); ++i) {
      const float error = y.data()[i] - wanted.data()[i];
      loss += static_cast<double>(error) * static_cast<double>(error) / static_cast<double>(y.size());
      y.data()[i] = 2.0f * error / static_cast<float>(kRows);
    }
    if (step % 20 == 0) std::printf("step %3d  loss %.2e\n", step, loss);
    lora.backward(y.view(), x.view(), saved);

    // Plain gradient descent over whatever parameters there are.
    lora.for_each_parameter(
        [&](const peft::ParameterInfo&, peft::VectorView<float> value, peft::VectorView<float> grad) {
          for (peft::Index i = 0; i < value.size; ++i) value[i] -= kLearningRate * grad[i];
        });
    lora.zero_grad();
    if (step == kSteps && !(loss < 1e-3)) {
      std::printf("did not learn\n");
      return 1;
    }
  }
  std::printf("learned: %td numbers instead of %td\n", lora.a().size() + lora.b().size(), kIn * kOut);
  return 0;
}
