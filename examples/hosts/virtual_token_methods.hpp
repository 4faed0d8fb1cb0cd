#pragma once
/// A host's virtual tokens: a trained prefix (keys and values of every layer) or a prompt (rows of the first layer's input),
/// n of them before every sequence. What a host does with them is its own: hosts/virtual_tokens.hpp where attention is
/// causal, hosts/bert_virtual_tokens.hpp where it is not.

#include <cstdint>
#include <memory>
#include <utility>

#include "hosts/names.hpp"
#include "peft/prefix_cache.hpp"
#include "peft/prompt_embedding.hpp"

namespace peft_examples {

template <Scalar T>
class VirtualTokenMethods {
 public:
  /// Throws ShapeError for a prefix of another model, ConfigError beside a prompt.
  void set_prefix(std::shared_ptr<peft::PrefixCache<T>> prefix, const peft::PromptHost& host) {
    if (prefix) prefix->require_host(host);
    if (prefix && prompt_) peft::fail<peft::ConfigError>("set_prefix: the model has a prompt; remove it first");
    prefix_ = std::move(prefix);
  }
  /// Throws ShapeError for a prompt of another model, ConfigError beside a prefix.
  void set_prompt(std::shared_ptr<peft::PromptEmbedding<T>> prompt, const peft::PromptHost& host) {
    if (prompt) prompt->require_host(host);
    if (prompt && prefix_) peft::fail<peft::ConfigError>("set_prompt: the model has a prefix; remove it first");
    prompt_ = std::move(prompt);
  }
  const std::shared_ptr<peft::PrefixCache<T>>& prefix() const noexcept { return prefix_; }
  const std::shared_ptr<peft::PromptEmbedding<T>>& prompt() const noexcept { return prompt_; }
  /// n: where the sequences' own positions begin.
  Index count() const noexcept {
    return prefix_ ? prefix_->num_virtual_tokens() : prompt_ ? prompt_->num_virtual_tokens() : 0;
  }
  /// Whether the gradient of the first layer's input, or of the layers' keys and values, is wanted.
  bool trains_input() const noexcept { return prompt_ && prompt_->is_trainable(); }
  bool trains_prefix() const noexcept { return prefix_ && prefix_->is_trainable(); }
  bool trains() const noexcept { return trains_input() || trains_prefix(); }
  template <class Visitor>
  void for_each_parameter(Visitor& visit) {
    if (trains_prefix()) prefix_->for_each_parameter(visit);
    if (trains_input()) prompt_->for_each_parameter(visit);
  }

  /// Brings what is trained, or was changed, up to its parameters; dropout: of the step, or nullptr.
  void encode(const peft::DropoutKey* dropout, ExecutorRef executor) {
    if (prefix_ && (trains_prefix() || prefix_->is_stale())) prefix_->encode(executor);
    if (prompt_ && (trains_input() || prompt_->is_stale())) prompt_->encode(dropout, executor);
  }
  /// The same with the dropout of a pass.
  void encode(const peft::TrainContext<T>& context, ExecutorRef executor) {
    const peft::DropoutKey dropout{context.seed, context.step, kPromptModule, 0};
    encode(context.dropout ? &dropout : nullptr, executor);
  }

 private:
  static constexpr std::uint32_t kPromptModule = 0xFFFF0000u;  ///< of the P-tuning encoder's dropout masks

  std::shared_ptr<peft::PrefixCache<T>> prefix_;
  std::shared_ptr<peft::PromptEmbedding<T>> prompt_;
};

}  // namespace peft_examples
