// Training needs a gradient of the base's input: a base that offers none is refused at compile time, and both ways of
// offering it are named.
#include <peft/lora.hpp>

struct ForwardOnly {
  using value_type = float;
  peft::Index in_features() const { return 4; }
  peft::Index out_features() const { return 2; }
  void forward(peft::MatrixView<const float>, peft::MatrixView<float>) const {}
};

void train(peft::Lora<>& lora, const ForwardOnly& base, const peft::Lora<>::Saved& saved,
           peft::MatrixView<const float> dy, peft::MatrixView<const float> x, peft::MatrixView<float> dx) {
  lora.backward(base, dy, x, saved, dx);
}
