// One training step of LoRA over a frozen layer: the loss goes down. Exit status 0 where it does.
#include <peft/dense_linear.hpp>
#include <peft/lora.hpp>
#include <peft/version.hpp>

#include <cmath>
#include <cstdio>

int main() {
  constexpr peft::Index kIn = 24, kOut = 16, kRows = 8;
  peft::Matrix<float> weight(kOut, kIn), x(kRows, kIn), y(kRows, kOut);
  for (peft::Index i = 0; i < weight.size(); ++i) weight.data()[i] = 0.1f * std::sin(static_cast<float>(i));
  for (peft::Index i = 0; i < x.size(); ++i) x.data()[i] = std::cos(static_cast<float>(3 * i));
  const peft::DenseLinear<float> base(std::move(weight));
  peft::Lora<float> lora(kIn, kOut, peft::LoraConfig{.r = 4, .lora_alpha = 8, .target_modules = {"layer"}}, 7);
  peft::Lora<float>::Saved saved;

  // The loss is Σ (y − 1)²/2, its gradient y − 1.
  const auto loss_and_gradient = [&] {
    lora.forward(base, x.view(), y.view(), saved);
    float loss = 0;
    for (float& value : y.flat()) {
      value -= 1.0f;
      loss += 0.5f * value * value;
    }
    return loss;
  };
  const float before = loss_and_gradient();
  lora.backward(y.view(), x.view(), saved);
  lora.for_each_parameter([](const peft::ParameterInfo&, peft::VectorView<float> value, peft::VectorView<float> grad) {
    for (peft::Index i = 0; i < value.size; ++i) value[i] -= 0.01f * grad[i];
  });
  const float after = loss_and_gradient();
  std::printf("peft %s: loss %.4f -> %.4f\n", PEFT_VERSION_STRING, static_cast<double>(before),
              static_cast<double>(after));
  return after < before ? 0 : 1;
}
