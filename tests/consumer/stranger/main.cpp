// Trains one step on a layer of its own, with the one header of the card.
#include <peft/lora.hpp>

#include <cmath>
#include <cstdio>

peft::Index whole_library();  // whole.cpp

namespace {

struct Doubling {
  using value_type = float;
  peft::Index in_features() const { return 8; }
  peft::Index out_features() const { return 8; }
  void forward(peft::MatrixView<const float> x, peft::MatrixView<float> y) const {
    for (peft::Index i = 0; i < x.rows; ++i) {
      for (peft::Index j = 0; j < x.cols; ++j) y(i, j) = 2.0f * x(i, j);
    }
  }
};

}  // namespace

int main() {
  const Doubling base;
  peft::Lora<float> lora(8, 8, peft::LoraConfig{.r = 2, .lora_alpha = 4, .target_modules = {"doubling"}}, 1);
  peft::Lora<float>::Saved saved;
  peft::Matrix<float> x(4, 8), y(4, 8);
  for (peft::Index i = 0; i < x.size(); ++i) x.data()[i] = std::sin(static_cast<float>(i));
  double losses[2];
  for (double& loss : losses) {
    lora.forward(base, x.view(), y.view(), saved);
    loss = 0;
    for (float& value : y.flat()) loss += static_cast<double>(value * value);  // the gradient is 2·y; y is small enough
    lora.backward(y.view(), x.view(), saved);
    lora.for_each_parameter([](const peft::ParameterInfo&, peft::VectorView<float> value, peft::VectorView<float> grad) {
      for (peft::Index i = 0; i < value.size; ++i) value[i] -= 0.02f * grad[i];
    });
    lora.zero_grad();
  }
  std::printf("loss %.4f -> %.4f, %td parameters, %td\n", losses[0], losses[1], lora.a().size() + lora.b().size(),
              whole_library());
  return losses[1] < losses[0] ? 0 : 1;
}
