#pragma once
/// How an instruction becomes text: the prompt that the model reads and the second part that it learns to write.

#include <string>
#include <string_view>

#include "peft/data/instruction_jsonl.hpp"
#include "peft/error.hpp"

PEFT_BEGIN_NAMESPACE

/// A prompt template by name:
///   chatml  <|im_start|>user\n{instruction}[\n{input}]<|im_end|>\n<|im_start|>assistant\n  +  {output}<|im_end|>\n
///   alpaca  Stanford Alpaca's prompt, with or without an input  +  {output}
///   plain   {instruction}\n[{input}\n]  +  {output}\n
class PromptTemplate {
 public:
  /// Throws ConfigError for an unknown name.
  explicit PromptTemplate(std::string_view name) : name_(name) {
    if (name != "chatml" && name != "alpaca" && name != "plain") {
      fail<ConfigError>("prompt template \"{}\" is not known; expected chatml, alpaca or plain", name);
    }
  }

  const std::string& name() const noexcept { return name_; }

  std::string prompt(const InstructionRecord& record) const {
    const std::string input = record.input.empty() ? "" : "\n" + record.input;
    if (name_ == "chatml") {
      return "<|im_start|>user\n" + record.instruction + input + "<|im_end|>\n<|im_start|>assistant\n";
    }
    if (name_ == "plain") return record.instruction + input + "\n";
    if (record.input.empty()) {
      return "Below is an instruction that describes a task. Write a response that appropriately completes the "
             "request.\n\n### Instruction:\n" +
             record.instruction + "\n\n### Response:\n";
    }
    return "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
           "response that appropriately completes the request.\n\n### Instruction:\n" +
           record.instruction + "\n\n### Input:\n" + record.input + "\n\n### Response:\n";
  }

  /// What follows the prompt in training. chatml closes the turn itself; the others leave that to the tokenizer's
  /// end-of-text id (ends_with_eos).
  std::string completion(const InstructionRecord& record) const {
    if (name_ == "chatml") return record.output + "<|im_end|>\n";
    return name_ == "plain" ? record.output + "\n" : record.output;
  }
  /// Whether the tokeniser's end-of-text id follows the completion.
  bool ends_with_eos() const noexcept { return name_ != "chatml"; }
  /// The special token before which an answer ends; empty: the end-of-text id.
  std::string_view stop_token() const noexcept { return name_ == "chatml" ? "<|im_end|>" : ""; }

 private:
  std::string name_;
};

PEFT_END_NAMESPACE
