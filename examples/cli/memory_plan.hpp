#pragma once
/// How a training of a Llama is fitted into a budget of memory, and what it takes: predicted from shapes (hosts/llama_memory.hpp).

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "hosts/llama_memory.hpp"
#include "peft/train/trainer_config.hpp"

namespace peft_examples {

/// "1.25 GiB", "581 MiB".
inline std::string memory_text(Index bytes) {
  constexpr double kMiB = 1024.0 * 1024.0;
  const double mib = static_cast<double>(bytes) / kMiB;
  return mib >= 1024.0 ? fmt::format("{:.2f} GiB", mib / 1024.0) : fmt::format("{:.0f} MiB", mib);
}

/// What may be chosen.
struct MemoryChoice {
  Index sub_batch = 512;  ///< TrainerConfig::max_tokens_per_sub_batch
  Index logit_bytes = peft::LinearCrossEntropy<float>::kLogitBytes;
  bool checkpoints = false;
  bool rounds = false;  ///< saved activations in bf16
  peft::OptimizerType optimizer = peft::OptimizerType::kAdamW;
  Index optimizer_memory = 0;  ///< of a paged one
};

struct MemoryPlan {
  MemoryChoice choice;
  Index weights = 0, parameters = 0, optimizer = 0, activations = 0, workspace = 0, program = 0;
  double time = 1.0;  ///< of a step, about, as a multiple of what was asked for

  Index total() const noexcept { return weights + parameters + optimizer + activations + workspace + program; }
  std::string text() const {
    return fmt::format("memory: weights {}, trained parameters with gradients {}, optimizer {}, activations {}, workspace {}, program "
                       "{}; together {}",
                       memory_text(weights), memory_text(parameters), memory_text(optimizer), memory_text(activations),
                       memory_text(workspace), memory_text(program), memory_text(total()));
  }
  nlohmann::ordered_json json() const {
    return {{"weights", weights},         {"parameters", parameters}, {"optimizer", optimizer}, {"activations", activations},
            {"workspace", workspace},     {"program", program},       {"total", total()},
            {"max_tokens_per_sub_batch", choice.sub_batch},           {"logit_bytes", choice.logit_bytes},
            {"checkpoint_activations", choice.checkpoints},           {"saved_activations", choice.rounds ? "bf16" : "f32"},
            {"optimizer_type", std::string(peft::name_of(choice.optimizer))}, {"time", time}};
  }
};

/// A training whose memory is planned.
struct PlannedTraining {
  explicit PlannedTraining(LlamaConfig shape) : config(std::move(shape)) {}

  LlamaConfig config;
  LlamaMethodMemory method;
  Index weights = 0;           ///< bytes of the base in memory
  Index number_bytes = 4;      ///< of an activation
  Index threads = 1;
  Index longest = 256;         ///< tokens that go through at once at least: of the longest record
  Index most = std::numeric_limits<Index>::max();  ///< at most: of a step, or of all that is evaluated
  Index value_copies = 0;      ///< of the trained values, the best ones so far
  Index min_8bit_size = 4096;  ///< TrainerConfig's
  MemoryChoice given;          ///< as asked for
  bool may_round = false;      ///< bf16 may be chosen, which changes gradients

  MemoryPlan plan(const MemoryChoice& choice) const {
    MemoryPlan result{choice};
    const LlamaPass pass = pass_of(choice);
    const OptimizerBytes state = optimizer_bytes(method, is_8bit(choice.optimizer), min_8bit_size);
    result.weights = weights;
    result.parameters = parameter_bytes(method, value_copies);
    result.optimizer = is_paged(choice.optimizer) ? std::min(state.total, std::max(state.least, choice.optimizer_memory)) : state.total;
    result.activations = activation_bytes(config, method, pass);
    result.workspace = workspace_bytes(config, method, pass);
    result.program = program(result.activations + result.workspace, is_paged(choice.optimizer));
    result.time = time_of(choice) / time_of(given);
    return result;
  }

  /// The plan that costs the least time of those that fit. Throws ConfigError where none does, naming the least budget that
  /// works.
  MemoryPlan fit(Index budget) const {
    std::optional<MemoryPlan> best, least;
    for (const MemoryChoice& choice : choices()) {
      const MemoryPlan one = plan(choice);
      if (!least || one.total() < least->total()) least = one;
      if (one.total() <= budget && (!best || one.time < best->time)) best = one;
    }
    if (best) return *best;
    constexpr Index kMiB = Index{1} << 20;
    peft::fail<peft::ConfigError>(
        "--memory-budget of {}: the least that this training works in is {}M, with {} ({}). More: shorter records (--max-length), "
        "weights in fewer bits (--dtype nf4), fewer trained parameters{}",
        memory_text(budget), (least->total() + kMiB - 1) / kMiB, text_of(least->choice), least->text(),
        may_round || number_bytes < 4 ? "" : ", or activations rounded to bf16 (--budget-may-round)");
  }

  /// How a choice differs from what was asked for.
  std::string text_of(const MemoryChoice& choice) const {
    std::vector<std::string> parts;
    const auto say = [&](std::string part) { parts.push_back(std::move(part)); };
    if (choice.sub_batch != given.sub_batch) say(fmt::format("sub-batches of {} tokens", choice.sub_batch));
    if (choice.logit_bytes != given.logit_bytes) say(fmt::format("{} of logits at once", memory_text(choice.logit_bytes)));
    if (choice.optimizer != given.optimizer || choice.optimizer_memory != given.optimizer_memory) {
      say(fmt::format("{} with {} in memory", name_of(choice.optimizer), memory_text(choice.optimizer_memory)));
    }
    if (choice.checkpoints != given.checkpoints) say("checkpointed activations");
    if (choice.rounds != given.rounds) say("saved activations in bf16");
    return parts.empty() ? "all as it is" : fmt::format("{}", fmt::join(parts, ", "));
  }

 private:
  /// What the program has in memory beside: code, tokenizer, what the allocator leaves between `buffers` that grow with the
  /// largest batch so far, pages around a file's windows. As measured on SmolLM2-135M, rounded up.
  Index program(Index buffers, bool is_paged) const noexcept {
    constexpr Index kCode = Index{10} << 20, kPerToken = 320, kGaps = 16, kPages = Index{8} << 20;
    return kCode + kPerToken * config.vocab_size + buffers / kGaps + (is_paged ? kPages : 0);
  }

  LlamaPass pass_of(const MemoryChoice& choice) const noexcept {
    return {std::max(std::min(choice.sub_batch, most), longest), number_bytes, choice.checkpoints, choice.rounds, choice.logit_bytes, threads};
  }

  std::vector<MemoryChoice> choices() const {
    std::vector<Index> sub_batches{given.sub_batch};
    for (Index half = std::min(given.sub_batch, most) / 2; half > longest; half /= 2) sub_batches.push_back(half);
    if (std::min(sub_batches.back(), most) > longest) sub_batches.push_back(longest);
    std::vector<Index> logits{given.logit_bytes};
    for (int i = 0; i < 4; ++i) logits.push_back(logits.back() / 2);
    std::vector<std::pair<peft::OptimizerType, Index>> optimizers{{given.optimizer, given.optimizer_memory}};
    const OptimizerBytes state = optimizer_bytes(method, is_8bit(given.optimizer), min_8bit_size);
    const auto paged = is_8bit(given.optimizer) ? peft::OptimizerType::kPagedAdamW8bit : peft::OptimizerType::kPagedAdamW;
    for (const Index part : {Index{2}, Index{4}, Index{16}}) {
      const Index memory = std::max(state.least, state.total / part);
      const Index before = is_paged(optimizers.back().first) ? optimizers.back().second : state.total;
      if (memory < before) optimizers.emplace_back(paged, memory);
    }
    std::vector<MemoryChoice> result;
    for (const Index sub_batch : sub_batches) {
      for (const Index logit_bytes : logits) {
        for (const auto& [optimizer, memory] : optimizers) {
          for (const bool checkpoints : {false, true}) {
            for (const bool rounds : {false, true}) {
              if ((given.checkpoints && !checkpoints) || (given.rounds && !rounds)) continue;
              if (rounds && !given.rounds && !(may_round && number_bytes == 4)) continue;
              result.push_back({sub_batch, logit_bytes, checkpoints, rounds, optimizer, memory});
            }
          }
        }
      }
    }
    return result;
  }

  /// Measured on SmolLM2-135M on two cores. A weight is decoded and packed once for a block of rows, which costs as much as
  /// kPacking rows of the product; checkpointed layers go forward twice; a paged state is read and written in each step.
  double time_of(const MemoryChoice& choice) const noexcept {
    constexpr double kPacking = 60, kHeadPacking = 23, kForward = 0.45, kRounding = 0.03, kPaging = 0.05;
    constexpr Index kBlockRows = 256;
    const LlamaPass pass = pass_of(choice);
    const Index chunk = peft::LinearCrossEntropy<float>::chunk_rows(pass.tokens, config.vocab_size, choice.logit_bytes);
    const auto layer = static_cast<double>(config.num_hidden_layers * detail::layer_numbers(config, {})) *
                       static_cast<double>(config.hidden_size);
    const double head = static_cast<double>(config.vocab_size) * static_cast<double>(config.hidden_size);
    const double share = head / (head + layer);
    double time = (1.0 - share) * (1.0 + kPacking / static_cast<double>(std::min(pass.tokens, kBlockRows)) + (choice.checkpoints ? kForward : 0.0)) +
                  share * (1.0 + kHeadPacking / static_cast<double>(std::max<Index>(1, chunk)));
    if (choice.rounds) time += kRounding;
    if (is_paged(choice.optimizer)) {
      const OptimizerBytes state = optimizer_bytes(method, is_8bit(choice.optimizer), min_8bit_size);
      time += kPaging * (1.0 - std::min(1.0, static_cast<double>(choice.optimizer_memory) / static_cast<double>(std::max<Index>(1, state.total))));
    }
    return time;
  }
};

}  // namespace peft_examples
