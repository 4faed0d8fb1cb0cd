#pragma once
/// A model that is ready: weights, tokenizer and, where asked for, an adapter.

#include <CLI/CLI.hpp>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cli/method.hpp"
#include "cli/model_runs.hpp"
#include "cli/weight_options.hpp"
#include "hosts/bpe_tokenizer.hpp"
#include "hosts/open_model.hpp"
#include "hosts/weight_reader.hpp"
#include "peft/adapter_registry.hpp"
#include "peft/core/parallel.hpp"
#include "peft/data/prompt_template.hpp"

namespace peft_examples {

/// What every command that runs a model is told.
struct ModelOptions : WeightOptions {
  std::string model;
  std::string adapter;
  int threads = 0;  ///< 0: the processors that this process may run on

  void add_to(CLI::App& command, bool with_adapter, bool may_be_made = false) {
    add_model_to(command, with_adapter, may_be_made);
    WeightOptions::add_to(command);
  }
  /// Without those of weights. may_be_made: the command looks itself whether the model is there.
  void add_model_to(CLI::App& command, bool with_adapter, bool may_be_made = false) {
    CLI::Option* const path = command.add_option("--model", model, "GGUF file or Hugging Face folder of the base model");
    if (!may_be_made) path->required()->check(CLI::ExistingPath);
    if (with_adapter) {
      command.add_option("--adapter", adapter, "folder of an adapter, of PEFT or AdapterHub")->check(CLI::ExistingDirectory);
    }
    command.add_option("--threads", threads, "threads to compute with; 0: all processors")->check(CLI::Range(0, 512));
  }
};

/// Calls visit.template operator()<T>() with the type of activations that `dtype` means.
template <class Visit>
auto with_dtype(const std::string& dtype, Visit&& visit) {
  if (dtype == "bf16") return visit.template operator()<peft::bf16>();
  if (dtype == "f16") return visit.template operator()<peft::f16>();
  return visit.template operator()<float>();
}

/// While it lives, everything computes with so many threads.
class Threads {
 public:
  explicit Threads(int threads) : pool_(threads), executor_(pool_) {
    if (threads > 0) peft::set_default_executor(&executor_);
  }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;
  ~Threads() { peft::set_default_executor(nullptr); }

 private:
  peft::ThreadPool pool_;
  ExecutorRef executor_;
};

template <Scalar T>
class Session {
 public:
  /// Throws IoError, FormatError, ConfigError, ShapeError.
  explicit Session(const ModelOptions& options);  // in model_runs.cpp, for float, bf16 and f16

  const BpeTokenizer& tokenizer() const noexcept { return tokenizer_; }
  Llama<T>& model() noexcept { return model_; }
  const Llama<T>& model() const noexcept { return model_; }
  peft::AdapterRegistry<T>& registry() noexcept { return registry_; }
  std::span<AdaptedLinear<T>* const> sites() const noexcept { return sites_; }

  /// Puts a method on the model: what it trains and runs with. Throws as start_method.
  StartedMethod<T> start(const MethodChoice& choice, std::uint64_t seed) {
    std::function<Matrix<Accumulator<T>>(const AdaptedLinear<T>&)> original;
    if (quantizes_) {
      original = [this, source = std::optional<ModelSource>()](const AdaptedLinear<T>& site) mutable {
        if (!source) source = open_model(path_);
        return original_weight(*source, site.name() + ".weight");
      };
    }
    return start_method(choice, tokenizer_, model_, registry_, seed, original);
  }
  /// The start that the records give, where the method has one. Throws as start_from_records.
  FoundStart start_from(const MethodChoice& choice, const peft::InstructionData& data, Index records, std::uint64_t seed,
                        StartedMethod<T>& started, const std::function<void(Index)>& on_batch) {
    return start_from_records(choice, data, records, seed, model_, registry_, started, on_batch);
  }
  /// Tokens of a sequence that the model reads behind its virtual tokens.
  Index context() const noexcept { return model_.config().context() - model_.num_virtual_tokens(); }

  /// Throws ConfigError where the tokenizer lacks what the template is made of: its answers would never end.
  void require_template(const peft::PromptTemplate& prompt_template) const {
    if (prompt_template.stop_token().empty() || tokenizer_.id_of(prompt_template.stop_token()) >= 0) return;
    peft::fail<peft::ConfigError>("--template is {}, but this model's tokenizer has no token {}; expected another: "
                                  "--template alpaca or plain",
                                  prompt_template.name(), prompt_template.stop_token());
  }

  /// The ids of a text that stands at the beginning: behind the tokenizer's beginning of text, where it has one.
  std::vector<std::int32_t> encode_prompt(std::string_view text) const {
    std::vector<std::int32_t> ids = tokenizer_.spec().prefix;
    const std::vector<std::int32_t> inner = tokenizer_.encode(text);
    ids.insert(ids.end(), inner.begin(), inner.end());
    return ids;
  }

  /// The ids before any of which an answer ends: the template's own, the tokenizer's ends of text.
  std::vector<std::int32_t> stop_ids(std::string_view stop_token) const {
    std::vector<std::int32_t> ids = tokenizer_.spec().stops;
    for (const std::string_view text : {stop_token, std::string_view("<|endoftext|>")}) {
      if (const std::int32_t id = text.empty() ? -1 : tokenizer_.id_of(text); id >= 0) ids.push_back(id);
    }
    return ids;
  }

 private:
  std::string path_;
  bool quantizes_;
  BpeTokenizer tokenizer_;
  Llama<T> model_;
  std::vector<AdaptedLinear<T>*> sites_;
  peft::AdapterRegistry<T> registry_;
};

}  // namespace peft_examples
