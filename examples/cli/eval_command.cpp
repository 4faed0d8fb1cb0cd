/// peft eval: loss, perplexity, BLEU, ROUGE and fact accuracy of a model, with or without an adapter, on records that it
/// has not seen; with --task classify accuracy, macro-F1 and the confusion matrix (classify_command.cpp).

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cli/answers.hpp"
#include "cli/classify_eval.hpp"
#include "cli/command.hpp"
#include "cli/process.hpp"
#include "cli/progress.hpp"
#include "cli/records.hpp"
#include "cli/session.hpp"
#include "cli/task_option.hpp"
#include "peft/eval/perplexity.hpp"

namespace peft_examples {
namespace {

struct EvalOptions {
  ModelOptions model;
  std::string data, prompt_template = "chatml", predictions, bleu_tokenizer = "13a";
  std::vector<std::string> metrics{"loss", "bleu", "rouge"};
  Index max_length = 256, max_records = -1, show = 0;
  AnswerOptions answers;
  Task task = Task::kGenerate;
  std::vector<std::string> labels;
  bool json = false;

  bool wants(std::string_view metric) const { return std::find(metrics.begin(), metrics.end(), metric) != metrics.end(); }
  bool wants_answers() const { return wants("bleu") || wants("rouge") || wants("facts") || !predictions.empty() || show > 0; }
};

template <Scalar T>
class EvalRun {
 public:
  explicit EvalRun(const EvalOptions& options)
      : options_(options),
        template_(options.prompt_template),
        tokenizer_(peft::bleu_tokenizer_from(options.bleu_tokenizer)),
        records_(peft::read_instruction_jsonl(options.data, options.max_records)),
        session_(options.model) {}

  int operator()() {
    StopSignal stop;
    if (options_.wants("loss") && !measure_loss(stop)) return kInterruptedStatus;
    if (options_.wants_answers() && !measure_answers(stop)) return kInterruptedStatus;
    print();
    return 0;
  }

 private:
  bool measure_loss(const StopSignal& stop) {
    const peft::InstructionData data =
        tokenize_records(session_, options_.data, records_, template_, options_.max_length, progress_);
    const bool complete = peft_examples::measure_loss(session_.model(), data, loss_, stop.get(), [&](Index done) {
      progress_.update(static_cast<double>(done) / static_cast<double>(data.records()),
                       fmt::format("loss: {} of {} records", done, data.records()));
    });
    progress_.finish();
    if (complete) perplexity_ = peft::perplexity(loss_);
    return complete;
  }

  bool measure_answers(const StopSignal& stop) {
    const auto begin = std::chrono::steady_clock::now();
    std::size_t tokens = 0, furthest = 0;
    answers_ = answer<T>(session_, records_, template_, options_.answers, [&](std::size_t record, std::int32_t) {
      ++tokens;
      furthest = std::max(furthest, record);
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
      progress_.update(static_cast<double>(furthest) / static_cast<double>(records_.size()),
                       fmt::format("answers: {} of {} begun, {:.0f} tok/s", furthest + 1, records_.size(),
                                   static_cast<double>(tokens) / std::max(seconds.count(), 1e-9)));
      return !stop.came();
    });
    progress_.finish();
    if (stop.came()) return false;
    scores_.emplace(answers_, records_, tokenizer_);
    if (!options_.predictions.empty()) {
      write_predictions(options_.predictions, answers_, records_, tokenizer_);
      progress_.line(fmt::format("answers are in {}", options_.predictions));
    }
    return true;
  }

  void print() const {
    nlohmann::ordered_json json = {{"loss", nullptr},   {"perplexity", nullptr}, {"bleu", nullptr}, {"rouge1", nullptr},
                                   {"rouge2", nullptr}, {"rougeL", nullptr},     {"label_tokens", nullptr}};
    const auto say = [&](const std::string& line) {
      if (!options_.json) std::puts(line.c_str());
    };
    for (std::size_t i = 0; i < std::min(answers_.size(), static_cast<std::size_t>(options_.show)); ++i) {
      fmt::print("question  {}\nanswer    {}\n{}", question_text(records_[i]), answers_[i],
                 answers_[i] == records_[i].output ? "" : fmt::format("expected  {}\n", records_[i].output));
      std::puts("");
    }
    if (options_.wants("loss")) {
      json["loss"] = loss_.mean();
      json["perplexity"] = perplexity_;
      json["label_tokens"] = loss_.tokens;
      json["accuracy"] = static_cast<double>(loss_.correct) / static_cast<double>(loss_.tokens);
      say(fmt::format("loss {:.4f}  perplexity {:.3f}  ({} label tokens, {:.1f} % of them the likeliest)", loss_.mean(),
                      perplexity_, loss_.tokens,
                      100.0 * static_cast<double>(loss_.correct) / static_cast<double>(loss_.tokens)));
    }
    if (scores_ && options_.wants("bleu")) {
      json["bleu"] = scores_->bleu.score;
      json["bleu_tokenize"] = options_.bleu_tokenizer;
      say(fmt::format("BLEU {:.2f}  (tokenize {}, brevity penalty {:.3f})", scores_->bleu.score, options_.bleu_tokenizer,
                      scores_->bleu.brevity_penalty));
    }
    if (scores_ && options_.wants("rouge")) {
      const auto& [mean, words, characters] = scores_->rouge;
      json["rouge1"] = mean.rouge1.fmeasure;
      json["rouge2"] = mean.rouge2.fmeasure;
      json["rougeL"] = mean.rougeL.fmeasure;
      json["rouge_word_records"] = words;
      json["rouge_character_records"] = characters;
      say(fmt::format("ROUGE-1 {:.4f}  ROUGE-2 {:.4f}  ROUGE-L {:.4f}  ({} records by words, {} by characters)",
                      mean.rouge1.fmeasure, mean.rouge2.fmeasure, mean.rougeL.fmeasure, words, characters));
    }
    if (scores_ && (scores_->facts.facts > 0 || options_.wants("facts"))) {
      json["fact_accuracy"] = scores_->facts.mean();
      json["facts"] = scores_->facts.facts;
      json["facts_found"] = scores_->facts.found;
      say(fmt::format("facts {:.1f} %  ({} of {})", 100.0 * scores_->facts.mean(), scores_->facts.found,
                      scores_->facts.facts));
    }
    json["records"] = records_.size();
    json["peak_rss_mib"] = peak_rss_mib();
    if (options_.json) std::printf("%s\n", json.dump().c_str());
  }

  const EvalOptions& options_;
  Progress progress_;
  peft::PromptTemplate template_;
  peft::BleuTokenizer tokenizer_;
  std::vector<peft::InstructionRecord> records_;
  Session<T> session_;
  peft::LossSum loss_;
  double perplexity_ = 0.0;
  std::vector<std::string> answers_;
  std::optional<AnswerScores> scores_;
};

}  // namespace

void add_eval_command(CLI::App& app, Run& run) {
  auto options = std::make_shared<EvalOptions>();
  EvalOptions& o = *options;
  CLI::App& command = *app.add_subcommand("eval", "measure a model on records that it has not seen");
  o.model.add_to(command, true);
  add_task_option(command, o.task);
  add_labels_option(command, o.labels);
  command.add_option("--data", o.data, "records: JSON lines with instruction, input, output, facts; of classify: text, label")
      ->required()
      ->check(CLI::ExistingFile);
  command.add_option("--metrics", o.metrics, "loss, bleu, rouge, facts, with commas (facts also wherever records list some)")
      ->delimiter(',')
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->check(CLI::IsMember({"loss", "bleu", "rouge", "facts"}));
  command.add_option("--bleu-tokenize", o.bleu_tokenizer, "as sacreBLEU's")
      ->check(CLI::IsMember({"13a", "zh", "char", "none"}))
      ->capture_default_str();
  command.add_option("--predictions", o.predictions, "write prompt, reference, answer and scores as JSON lines");
  command.add_option("--template", o.prompt_template, "how a record becomes a prompt")
      ->check(CLI::IsMember({"chatml", "alpaca", "plain"}))
      ->capture_default_str();
  command.add_option("--max-length", o.max_length, "tokens of a record for the loss")->capture_default_str();
  command.add_option("--max-records", o.max_records, "only the first so many records");
  command.add_option("--show", o.show, "print the first so many questions, answers and what was expected");
  command.add_option("--max-tokens", o.answers.max_tokens, "tokens of an answer")->capture_default_str();
  command.add_option("--batch", o.answers.batch, "prompts that are answered together")->capture_default_str();
  command.add_flag("--json", o.json, "last line of stdout: the result as JSON");
  command.callback([options, &command, &run] {
    refuse_options_of_other_task(command, options->task);
    options->model.check(command);
    run = [options] {
      const Threads threads(options->model.threads);
      if (options->task == Task::kClassify) {
        return eval_classifier({options->model, options->data, options->predictions, options->labels, options->max_length,
                                options->max_records, options->json});
      }
      return with_dtype(options->model.dtype, [&]<Scalar T>() { return EvalRun<T>(*options)(); });
    };
  });
}

}  // namespace peft_examples
