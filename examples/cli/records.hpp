#pragma once
/// Instruction records as a model's ids, and what to tell of those that do not fit.

#include <fmt/format.h>

#include <span>
#include <string>
#include <string_view>

#include "cli/progress.hpp"
#include "cli/session.hpp"
#include "peft/data/instruction_data.hpp"

namespace peft_examples {

/// Tokenises the records of `path` for `session`'s model and says which were cut at max_length, and of which no label is
/// left. Virtual tokens leave that much less of the model's context, at which records are cut too. Throws ConfigError for a
/// template that the tokenizer has no tokens for, or a max_length below 2.
template <Scalar T>
peft::InstructionData tokenize_records(const Session<T>& session, const std::string& path,
                                       std::span<const peft::InstructionRecord> records,
                                       const peft::PromptTemplate& prompt_template, Index max_length, Progress& progress) {
  session.require_template(prompt_template);
  const bool behind_virtual = session.model().num_virtual_tokens() > 0 && max_length > session.context();
  if (behind_virtual) max_length = session.context();
  const auto encode = [&](std::string_view text) { return session.tokenizer().encode(text); };
  peft::InstructionData data(records, prompt_template, encode, max_length, session.tokenizer().eos(),
                             session.tokenizer().spec().prefix);
  if (data.cut_records() > 0) {
    progress.line(fmt::format("{}: {} of {} records are longer than {} {} and cut on the right", path, data.cut_records(),
                              data.records(), behind_virtual ? "what the virtual tokens leave of the context," : "--max-length",
                              max_length));
  }
  if (data.records_without_label() > 0) {
    progress.line(fmt::format("{}: in {} records nothing of the output is left; they count for nothing: raise "
                              "--max-length",
                              path, data.records_without_label()));
  }
  return data;
}

}  // namespace peft_examples
