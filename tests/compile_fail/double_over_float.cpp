// Double activations over float weights would be neither the reference nor fast: refused.
#include <peft/dense_linear.hpp>

void infer(const peft::DenseLinear<float>& linear, peft::MatrixView<const double> x, peft::MatrixView<double> y) {
  linear.forward(x, y);
}
