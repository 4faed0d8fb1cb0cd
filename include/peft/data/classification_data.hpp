#pragma once
/// Tokenised classification records as TrainingData: a text between the ids that stand around one ([CLS] and [SEP]), cut on
/// the right; its class is the target of its first position, and no other position has one. So a label token is a record:
/// means over label tokens are means over records, and the share of hits is the accuracy.

#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "peft/data/labelled_jsonl.hpp"
#include "peft/error.hpp"
#include "peft/train/batch.hpp"

PEFT_BEGIN_NAMESPACE

/// A record as ids.
struct ClassifiedRecord {
  std::vector<std::int32_t> ids;
  std::int32_t label = -1;
};

class ClassificationData {
 public:
  /// tokenize(std::string_view) -> std::vector<std::int32_t>, without the ids of `prefix` and `suffix`, which go around every
  /// text. Throws ConfigError where `max_length` leaves no id between them; FormatError with the line of a label that is
  /// not among `labels`.
  template <class Tokenize>
  ClassificationData(std::span<const LabelledRecord> records, const LabelSet& labels, Tokenize&& tokenize,
                     Index max_length, std::span<const std::int32_t> prefix = {},
                     std::span<const std::int32_t> suffix = {}) {
    const auto around = static_cast<Index>(prefix.size() + suffix.size());
    if (max_length < around + 1) {
      fail<ConfigError>("ClassificationData: max_length is {}; expected at least {}, one id between the {} around a text",
                        max_length, around + 1, around);
    }
    for (const LabelledRecord& record : records) {
      const Index label = labels.find(record.label);
      if (label < 0) {
        std::string known;
        for (const std::string& name : labels.names()) known += (known.empty() ? "" : ", ") + name;
        fail<FormatError>("the record of line {} has the label \"{}\"; expected one of {}, the training data's", record.line,
                          record.label, known);
      }
      ClassifiedRecord one;
      one.label = static_cast<std::int32_t>(label);
      one.ids.assign(prefix.begin(), prefix.end());
      std::vector<std::int32_t> text = tokenize(std::string_view(record.text));
      if (static_cast<Index>(text.size()) > max_length - around) {
        ++cut_;
        text.resize(static_cast<std::size_t>(max_length - around));
      }
      one.ids.insert(one.ids.end(), text.begin(), text.end());
      one.ids.insert(one.ids.end(), suffix.begin(), suffix.end());
      if (one.ids.empty()) fail<FormatError>("the record of line {} has no token: \"{}\"", record.line, record.text);
      records_.push_back(std::move(one));
    }
  }

  // -- TrainingData --------------------------------------------------------------------------------------------------
  Index records() const noexcept { return static_cast<Index>(records_.size()); }
  Index tokens(Index record) const noexcept { return static_cast<Index>(at(record).ids.size()); }
  Index label_tokens(Index) const noexcept { return 1; }
  void append(Index record, PackedBatch& batch) const {
    const ClassifiedRecord& one = at(record);
    const auto count = static_cast<Index>(one.ids.size());
    for (Index i = 0; i < count; ++i) {
      batch.ids.push_back(one.ids[static_cast<std::size_t>(i)]);
      batch.positions.push_back(static_cast<std::int32_t>(i));
      batch.targets.push_back(i == 0 ? one.label : -1);
    }
    batch.offsets.push_back(batch.offsets.back() + count);
  }

  const ClassifiedRecord& at(Index record) const noexcept { return records_[static_cast<std::size_t>(record)]; }
  /// Records that were longer than max_length.
  Index cut_records() const noexcept { return cut_; }

 private:
  std::vector<ClassifiedRecord> records_;
  Index cut_ = 0;
};

PEFT_END_NAMESPACE
