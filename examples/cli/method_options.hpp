#pragma once
/// What is trained, as the command line says it: --method with its options, which are PEFT's (AdapterHub's) fields, or
/// --config with a file of them.

#include <CLI/CLI.hpp>

#include <cstddef>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "peft/adapter_config.hpp"
#include "peft/adapter_fusion_config.hpp"
#include "peft/any_config.hpp"
#include "peft/checkpoint/prompt_learning_json.hpp"

namespace peft_examples {

using peft::Index;

/// What a model is trained for.
enum class Task {
  kGenerate,  ///< texts: a causal language model (a Llama)
  kClassify,  ///< one of several classes: an encoder (a BERT) with a head, which is trained and saved with the method
};

/// The head that a classifier's training begins with.
enum class Head {
  kTransformers,  ///< BERT's pooler, which stays as it is unless the method trains it, and a new linear
  kAdapterHub,    ///< two new linears, in AdapterHub's files beside whatever the method saves
};

/// AdapterFusion over adapters of AdapterHub, which stay as they are.
struct FusionChoice {
  std::vector<std::string> adapters;  ///< their folders
  peft::AdapterFusionConfig config;
};

/// A method with its configuration.
struct MethodChoice {
  /// Of virtual tokens, of parts at the model's modules (LoRA's family and its like), of bottlenecks, or of their fusion.
  using Config = std::variant<peft::PromptLearningConfig, peft::AnyConfig, peft::AdapterConfig, FusionChoice>;

  std::string name;              ///< "lora", "prefix", …
  Config config;
  std::string base_model;        ///< its name
  std::string prefix_init_text;  ///< of a prefix; empty: a random start
  double learning_rate = 0;      ///< what the method wants where nobody says another
  double loraplus_lr_ratio = 0;

  /// Whether what is trained stands for the base's own parameters, and does not add to them: full fine-tuning, BitFit, the
  /// head alone.
  bool replaces_parameters() const;
  /// Whether the start comes from what the records make of the model's inputs (EVA): start_from_records() follows.
  bool starts_from_inputs() const;
  /// Whether the start changes the base's weights (PiSSA, OLoRA, LoftQ).
  bool changes_base() const;
  /// Of an aLoRA; else empty.
  std::vector<Index> invocation_tokens() const;
};

/// The names of a task's methods, for --method and messages.
std::vector<std::string> method_names(Task task);

/// The options of `peft train` that say what is trained.
class MethodOptions {
 public:
  MethodOptions() = default;
  MethodOptions(const MethodOptions&) = delete;
  MethodOptions& operator=(const MethodOptions&) = delete;

  void add_to(CLI::App& command);
  /// Throws CLI::ValidationError for an option that was given and is none of the method's, naming both, and for a method that
  /// is none of the task's or does not go with the head.
  void check(Task task, Head head) const;
  /// Whether the method is LoRA over weights in four bits.
  bool wants_quantized() const noexcept;
  /// The method with its configuration. `model`: of the base, whose name the configuration keeps. `total_steps`: optimizer
  /// steps of the training. Throws ConfigError for a field out of range or not supported, or a configuration of another task,
  /// IoError and FormatError for a broken file.
  MethodChoice choose(const std::string& model, Index total_steps, Task task, Head head = Head::kTransformers) const;

 private:
  MethodChoice from_file(Index total_steps) const;
  MethodChoice from_options(const std::string& model, Index total_steps, Task task) const;
  MethodChoice fusion() const;
  std::size_t count(std::string_view option) const;

  std::string method_ = "lora", config_;
  CLI::Option* method_option_ = nullptr;
  std::map<std::string, std::string, std::less<>> values_;  ///< by option, as they were given
  std::vector<std::pair<std::string, CLI::Option*>> options_;
};

}  // namespace peft_examples
