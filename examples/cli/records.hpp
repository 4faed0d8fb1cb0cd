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
/// left. Throws ConfigError for a template that the tokenizer has no tokens for, or a max_length below 2.
template <Scalar T>
peft::InstructionData tokenize_records(const Session<T>& session, const std::string& path,
                                       std::span<const peft::InstructionRecord> records,
                                       const peft::PromptTemplate& prompt_template, Index max_length, Progress& progress) {
  session.require_template(prompt_template);
  const auto encode = [&](std::string_view text) { return session.tokenizer().encode(text); };
  peft::InstructionData data(records, prompt_template, encode, max_length, session.tokenizer().eos(),
                             session.tokenizer().spec().prefix);
  if (data.cut_records() > 0) {
    progress.line(fmt::format("{}: {} of {} records are longer than --max-length {} and cut on the right", path,
                              data.cut_records(), data.records(), max_length));
  }
  if (data.records_without_label() > 0) {
    progress.line(fmt::format("{}: in {} records nothing of the output is left; they count for nothing: raise "
                              "--max-length",
                              path, data.records_without_label()));
  }
  return data;
}

}  // namespace peft_examples
