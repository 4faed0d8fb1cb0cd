#pragma once
/// Tokenised instruction records as TrainingData: prompt and completion are tokenised separately, joined, and cut on the
/// right; every id of the completion is a label. A position's target is the id after it, where that is a label.

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "peft/data/prompt_template.hpp"
#include "peft/error.hpp"
#include "peft/train/batch.hpp"

PEFT_BEGIN_NAMESPACE

/// A record as ids: [0, prompt_length) is read, the rest is learned.
struct TokenizedRecord {
  std::vector<std::int32_t> ids;
  Index prompt_length = 0;
};

class InstructionData {
 public:
  /// tokenize(std::string_view) -> std::vector<std::int32_t>, without special tokens of its own. `eos`: id that ends a
  /// completion where the template asks for one; -1: none. `prefix`: ids before every prompt, the tokenizer's beginning of
  /// text. Throws ConfigError for max_length below 2.
  template <class Tokenize>
  InstructionData(std::span<const InstructionRecord> records, const PromptTemplate& prompt_template, Tokenize&& tokenize,
                  Index max_length, std::int32_t eos = -1, std::span<const std::int32_t> prefix = {}) {
    if (max_length < 2) fail<ConfigError>("InstructionData: max_length is {}; expected at least 2", max_length);
    for (const InstructionRecord& record : records) {
      TokenizedRecord one;
      one.ids.assign(prefix.begin(), prefix.end());
      const std::vector<std::int32_t> first = tokenize(prompt_template.prompt(record));
      one.ids.insert(one.ids.end(), first.begin(), first.end());
      one.prompt_length = static_cast<Index>(one.ids.size());
      const std::vector<std::int32_t> second = tokenize(prompt_template.completion(record));
      one.ids.insert(one.ids.end(), second.begin(), second.end());
      if (prompt_template.ends_with_eos() && eos >= 0) one.ids.push_back(eos);
      if (static_cast<Index>(one.ids.size()) > max_length) {
        ++cut_;
        one.ids.resize(static_cast<std::size_t>(max_length));
        one.prompt_length = std::min(one.prompt_length, max_length);
      }
      if (label_count(one) == 0) ++without_label_;
      records_.push_back(std::move(one));
    }
  }

  // -- TrainingData --------------------------------------------------------------------------------------------------
  Index records() const noexcept { return static_cast<Index>(records_.size()); }
  Index tokens(Index record) const noexcept { return static_cast<Index>(at(record).ids.size()); }
  Index label_tokens(Index record) const noexcept { return label_count(at(record)); }
  void append(Index record, PackedBatch& batch) const {
    const TokenizedRecord& one = at(record);
    const auto count = static_cast<Index>(one.ids.size());
    for (Index i = 0; i < count; ++i) {
      batch.ids.push_back(one.ids[static_cast<std::size_t>(i)]);
      batch.positions.push_back(static_cast<std::int32_t>(i));
      const bool has_label = i + 1 < count && i + 1 >= one.prompt_length;
      batch.targets.push_back(has_label ? one.ids[static_cast<std::size_t>(i + 1)] : -1);
    }
    batch.offsets.push_back(batch.offsets.back() + count);
  }

  const TokenizedRecord& at(Index record) const noexcept { return records_[static_cast<std::size_t>(record)]; }
  /// Records that were longer than max_length.
  Index cut_records() const noexcept { return cut_; }
  /// Records of which no label is left: their prompt alone reaches max_length.
  Index records_without_label() const noexcept { return without_label_; }

 private:
  static Index label_count(const TokenizedRecord& one) noexcept {
    return static_cast<Index>(one.ids.size()) - std::max<Index>(1, one.prompt_length) > 0
               ? static_cast<Index>(one.ids.size()) - std::max<Index>(1, one.prompt_length)
               : 0;
  }

  std::vector<TokenizedRecord> records_;
  Index cut_ = 0;
  Index without_label_ = 0;
};

PEFT_END_NAMESPACE
