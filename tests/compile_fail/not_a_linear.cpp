// A layer without out_features is no LinearLike, and the compiler says so.
#include <peft/lora.hpp>

struct Incomplete {
  using value_type = float;
  peft::Index in_features() const { return 4; }
  void forward(peft::MatrixView<const float>, peft::MatrixView<float>) const {}
};

void infer(const peft::Lora<>& lora, const Incomplete& base, peft::MatrixView<const float> x,
           peft::MatrixView<float> y) {
  lora.forward(base, x, y);
}
