#pragma once
/// The course of a training: one record per optimizer step and per evaluation, and its line of JSON (metrics.jsonl).

#include <fmt/format.h>

#include <iterator>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "peft/core/scalar.hpp"
#include "peft/error.hpp"

PEFT_BEGIN_NAMESPACE

/// One optimizer step, or one evaluation after `step` steps. Losses are means over label tokens, in nats.
struct MetricsRecord {
  enum class Kind : std::uint8_t { kStep, kEvaluation };

  Kind kind = Kind::kStep;
  Index step = 0;      ///< optimizer steps done
  double epoch = 0.0;  ///< passes over the training data done
  double loss = 0.0;
  Index label_tokens = 0;
  // Of a step only:
  double learning_rate = 0.0;
  double grad_norm = 0.0;  ///< before clipping
  Index tokens = 0;
  double tokens_per_second = 0.0;
  bool skipped = false;  ///< loss scaling met gradients that were not finite

  friend bool operator==(const MetricsRecord&, const MetricsRecord&) = default;
};

/// The record as one JSON object without a line's end. Numbers have the digits that bring the same bits back; what is
/// not finite is null, as JSON knows no such number.
inline std::string to_json(const MetricsRecord& record) {
  fmt::memory_buffer text;
  const auto out = std::back_inserter(text);
  const auto number = [&](const char* key, double value) {
    if (is_finite(value)) {
      fmt::format_to(out, ",\"{}\":{}", key, value);
    } else {
      fmt::format_to(out, ",\"{}\":null", key);
    }
  };
  fmt::format_to(out, "{{\"step\":{}", record.step);
  number("epoch", record.epoch);
  if (record.kind == MetricsRecord::Kind::kEvaluation) {
    number("eval_loss", record.loss);
    fmt::format_to(out, ",\"eval_label_tokens\":{}", record.label_tokens);
  } else {
    number("loss", record.loss);
    number("learning_rate", record.learning_rate);
    number("grad_norm", record.grad_norm);
    fmt::format_to(out, ",\"tokens\":{},\"label_tokens\":{}", record.tokens, record.label_tokens);
    number("tok_s", record.tokens_per_second);
    if (record.skipped) fmt::format_to(out, ",\"skipped\":true");
  }
  fmt::format_to(out, "}}");
  return fmt::to_string(text);
}

/// All records of a run, in order.
class MetricsLog {
 public:
  void add(MetricsRecord record) { records_.push_back(std::move(record)); }
  std::span<const MetricsRecord> records() const noexcept { return records_; }

  /// Forgets what came after `step` steps, and evaluations after `evaluated_step`: a run resumed there writes it again.
  void truncate(Index step, Index evaluated_step) {
    std::erase_if(records_, [&](const MetricsRecord& record) {
      return record.step > (record.kind == MetricsRecord::Kind::kStep ? step : evaluated_step);
    });
  }

 private:
  std::vector<MetricsRecord> records_;
};

PEFT_END_NAMESPACE
