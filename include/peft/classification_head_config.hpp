#pragma once
/// A classification head of AdapterHub's own model classes (adapters' BertAdapterModel.add_classification_head), by its
/// fields' names. It reads the encoder's first row h without BERT's pooler, and all of it is new and trained:
///   layers 2:  z = drop(σ(drop(h)·W₁ᵀ + b₁))·W₂ᵀ + b₂;   layers 1:  z = drop(h)·Wᵀ + b

#include <optional>
#include <string>
#include <vector>

#include "peft/core/activation.hpp"
#include "peft/core/scalar.hpp"
#include "peft/error.hpp"
#include "peft/full_config.hpp"

PEFT_BEGIN_NAMESPACE

struct ClassificationHeadConfig {
  std::string name = "default";  ///< by AdapterHub's custom the adapter's
  Index layers = 2;
  std::string activation_function = "tanh";  ///< σ
  std::optional<float> dropout_prob{};       ///< not set: the model's

  friend bool operator==(const ClassificationHeadConfig&, const ClassificationHeadConfig&) = default;

  /// The linears by name, first to last: their places in the torch.nn.Sequential of dropout, linear, σ, dropout, linear.
  std::vector<std::string> modules() const {
    std::vector<std::string> result{"heads." + name + ".1"};
    if (layers == 2) result.push_back("heads." + name + ".4");
    return result;
  }
  /// The configuration of an adapter that trains the head alone.
  FullConfig training() const { return {.target_modules = modules(), .task_type = "SEQ_CLS"}; }

  /// Throws ConfigError.
  void validate() const {
    if (name.empty() || name.find('.') != std::string::npos) {
      fail<ConfigError>("ClassificationHeadConfig: name is \"{}\"; expected one without a point, which no module of torch has in its own",
                        name);
    }
    if (layers != 1 && layers != 2) fail<ConfigError>("ClassificationHeadConfig: layers is {}; expected 1 or 2", layers);
    if (!activation_named(activation_function)) {
      fail<ConfigError>("ClassificationHeadConfig: activation_function \"{}\" is not supported; expected tanh, relu, gelu, "
                        "gelu_new, silu, swish or leakyrelu",
                        activation_function);
    }
    if (dropout_prob && !(*dropout_prob >= 0.0f && *dropout_prob < 1.0f)) {
      fail<ConfigError>("ClassificationHeadConfig: dropout_prob is {}; expected a probability below 1", *dropout_prob);
    }
  }
};

PEFT_END_NAMESPACE
