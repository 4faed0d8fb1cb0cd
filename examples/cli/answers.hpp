#pragma once
/// A model's answers to instruction records, and how good they are.

#include <fmt/format.h>

#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "cli/session.hpp"
#include "peft/data/prompt_template.hpp"
#include "peft/eval/bleu.hpp"
#include "peft/eval/fact_accuracy.hpp"
#include "peft/eval/rouge.hpp"
#include "peft/io/atomic_file.hpp"

namespace peft_examples {

struct AnswerOptions {
  Index max_tokens = 128;
  Index batch = 8;  ///< prompts that run together
};

/// The likeliest answer to each record, spaces at its ends left out. on_token(record, id) hears every token; false from it
/// stops. Throws ConfigError for a template that the tokenizer has no tokens for, and for a prompt that is longer than the
/// model's context, with the record's line.
template <Scalar T>
std::vector<std::string> answer(Session<T>& session, std::span<const peft::InstructionRecord> records,
                                const peft::PromptTemplate& prompt_template, const AnswerOptions& options,
                                const std::function<bool(std::size_t, std::int32_t)>& on_token = {}) {
  session.require_template(prompt_template);
  std::vector<std::vector<std::int32_t>> prompts;
  const Index context = session.context(), virtual_tokens = session.model().num_virtual_tokens();
  for (const peft::InstructionRecord& record : records) {
    prompts.push_back(session.encode_prompt(prompt_template.prompt(record)));
    if (static_cast<Index>(prompts.back().size()) > context) {
      peft::fail<peft::ConfigError>("line {}: the prompt has {} tokens; the model reads at most {}{}", record.line,
                                    prompts.back().size(), context,
                                    virtual_tokens > 0 ? fmt::format(" behind its {} virtual tokens", virtual_tokens) : "");
    }
  }
  GenerateOptions generation;
  generation.max_tokens = options.max_tokens;
  generation.stop_ids = session.stop_ids(prompt_template.stop_token());
  std::vector<std::string> answers;
  for (const auto& ids : generate<T>(session.model(), prompts, generation, options.batch, on_token)) {
    std::string text = session.tokenizer().decode(ids, true);
    const std::size_t first = text.find_first_not_of(" \t\r\n");
    text = first == std::string::npos ? "" : text.substr(first, text.find_last_not_of(" \t\r\n") - first + 1);
    answers.push_back(std::move(text));
  }
  return answers;
}

/// Scores of answers against the records' outputs and facts.
struct AnswerScores {
  peft::BleuScore bleu;
  peft::RougeMean rouge;
  peft::FactCount facts;  ///< of the records that list facts

  AnswerScores(std::span<const std::string> answers, std::span<const peft::InstructionRecord> records,
               peft::BleuTokenizer tokenizer) {
    std::vector<std::string> references;
    for (std::size_t i = 0; i < records.size(); ++i) {
      references.push_back(records[i].output);
      const peft::FactCount one = peft::count_facts(answers[i], records[i].facts);
      facts.found += one.found;
      facts.facts += one.facts;
    }
    bleu = peft::corpus_bleu(answers, references, tokenizer);
    rouge = peft::mean_rouge(answers, references);
  }
};

/// What was asked, as people read it.
inline std::string question_text(const peft::InstructionRecord& record) {
  return record.input.empty() ? record.instruction : record.instruction + "\n" + record.input;
}

/// One line of JSON per record for people to rate: prompt, reference, answer, scores. Replaces `path` in one step.
inline void write_predictions(const std::filesystem::path& path, std::span<const std::string> answers,
                              std::span<const peft::InstructionRecord> records, peft::BleuTokenizer tokenizer) {
  peft::AtomicFile file(path);
  for (std::size_t i = 0; i < records.size(); ++i) {
    const peft::InstructionRecord& record = records[i];
    const peft::RougeMode mode = peft::choose_rouge_mode(record.output);
    const peft::RougeScore rouge = peft::rouge(answers[i], record.output, mode);
    nlohmann::ordered_json json = {{"line", record.line},
                                   {"prompt", question_text(record)},
                                   {"reference", record.output},
                                   {"answer", answers[i]},
                                   {"bleu", peft::sentence_bleu(answers[i], record.output, tokenizer).score},
                                   {"rouge1", rouge.rouge1.fmeasure},
                                   {"rouge2", rouge.rouge2.fmeasure},
                                   {"rougeL", rouge.rougeL.fmeasure},
                                   {"rouge_mode", std::string(name_of(mode))}};
    if (!record.facts.empty()) {
      std::vector<std::string> found, missing;
      for (const std::string& fact : record.facts) {
        (peft::contains_fact(answers[i], fact) ? found : missing).push_back(fact);
      }
      json["facts_found"] = found;
      json["facts_missing"] = missing;
    }
    file.write(json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
  }
  file.commit();
}

}  // namespace peft_examples
