// Gradients of prefix tuning, prompt tuning and P-tuning through the whole tiny host, against central differences in double:
// error h²·f''' + eps·|L|/h, with h = 1e-5 and |L| ≈ 50: 1e-10·f''' + 1e-9.
#include "golden/prompt_learning/tiny_host.hpp"
#include "support/central_differences.hpp"

using namespace prompt_test;

namespace {

constexpr double kStep = 1e-5;

/// Checks every `stride`-th number of every parameter.
void check_gradients(Llama<double>& model, Index stride) {
  const PackedBatch batch = tiny_batch();
  const auto loss = [&] {
    LossSum sum;
    model.forward_backward(batch, 1.0, 7, 2, sum);
    return sum.loss;
  };
  zero_grads(model);
  loss();
  struct One {
    std::string name;
    VectorView<double> value;
    std::vector<double> grad;
  };
  std::vector<One> all;
  model.for_each_parameter([&](const ParameterInfo& info, VectorView<double> value, VectorView<double> grad) {
    all.push_back({std::string(info.name), value, {grad.begin(), grad.end()}});
  });
  REQUIRE(!all.empty());
  Index checked = 0;
  for (const One& one : all) {
    double largest = 0;
    for (const double g : one.grad) largest = std::max(largest, std::fabs(g));
    INFO(one.name);
    CHECK(largest > 1e-6);
    for (Index i = checked % stride; i < one.value.size; i += stride, ++checked) {
      const double numeric = peft_test::second_order_difference(one.value[i], kStep, loss);
      const double grad = one.grad[static_cast<std::size_t>(i)];
      if (!(std::fabs(numeric - grad) <= 2e-8 * (1 + std::fabs(grad)))) {
        CAPTURE(i, numeric, grad);
        FAIL("the gradient differs from the central difference");
      }
    }
  }
  CHECK(checked >= 30);
}

const PromptHost kHost{2, 32, 4, 2, 8};

}  // namespace

TEST_CASE("prefix tuning's gradients are the central differences, with and without the MLP") {
  Llama<double> model = tiny_llama<double>();
  model.set_prefix(std::make_shared<PrefixCache<double>>(PrefixTuningConfig{.num_virtual_tokens = 3}.fit_to(kHost), 1));
  check_gradients(model, 1);
  model.set_prefix(std::make_shared<PrefixCache<double>>(
      PrefixTuningConfig{.num_virtual_tokens = 3, .encoder_hidden_size = 5, .prefix_projection = true}.fit_to(kHost), 2));
  check_gradients(model, 3);
}

TEST_CASE("prompt tuning's and P-tuning's gradients are the central differences") {
  Llama<double> model = tiny_llama<double>();
  model.set_prompt(std::make_shared<PromptEmbedding<double>>(PromptTuningConfig{.num_virtual_tokens = 3}.fit_to(kHost), 1));
  check_gradients(model, 1);
  model.set_prompt(std::make_shared<PromptEmbedding<double>>(
      PromptEncoderConfig{.num_virtual_tokens = 4, .encoder_hidden_size = 6}.fit_to(kHost), 2));
  check_gradients(model, 2);
  for (const float dropout : {0.0f, 0.4f}) {
    for (const Index layers : {1, 3}) {
      CAPTURE(dropout, layers);
      model.set_prompt(std::make_shared<PromptEmbedding<double>>(
          PromptEncoderConfig{
              .num_virtual_tokens = 4,
              .encoder_reparameterization_type = PromptEncoderReparameterizationType::kLstm,
              .encoder_hidden_size = 5,
              .encoder_num_layers = layers,
              .encoder_dropout = dropout,
          }.fit_to(kHost), 3));
      check_gradients(model, 11);
    }
  }
}
