#pragma once
/// Text classification files: one JSON object per line with `text` and `label`. Other fields are left alone. Nothing is
/// skipped silently: a line that does not fit is an error with file, line and column.

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "peft/core/scalar.hpp"
#include "peft/data/jsonl.hpp"
#include "peft/error.hpp"

PEFT_BEGIN_NAMESPACE

/// One record of a classification file.
struct LabelledRecord {
  std::string text;
  std::string label;
  Index line = 0;  ///< line of the file, from 1
};

/// All records of `path`, or the first `max_records` where that is not negative. Blank lines, a byte order mark and CRLF are
/// allowed. Throws IoError; FormatError, also for a file without a record or an empty text or label.
inline std::vector<LabelledRecord> read_labelled_jsonl(const std::filesystem::path& path, Index max_records = -1) {
  constexpr std::string_view kExpected = "\"text\" and \"label\"";
  std::vector<LabelledRecord> records;
  const auto take = [&](const nlohmann::json& object, const std::string& where, Index line) {
    LabelledRecord record;
    record.text = detail::text_field(object, "text", true, where, kExpected);
    record.label = detail::text_field(object, "label", true, where, kExpected);
    record.line = line;
    for (const auto& [name, value] : {std::pair{"text", &record.text}, {"label", &record.label}}) {
      if (value->find_first_not_of(" \t\r\n") == std::string::npos) {
        fail<FormatError>("{}: field \"{}\" is empty; expected a text and its class", where, name);
      }
    }
    records.push_back(std::move(record));
  };
  detail::for_each_json_line(path, "classification file", "{\"text\": …, \"label\": …}", kExpected, max_records, take);
  return records;
}

/// The classes by number, from 0.
class LabelSet {
 public:
  /// In this order. Throws ConfigError for fewer than two, an empty one or one that stands there twice.
  explicit LabelSet(std::vector<std::string> names) : names_(std::move(names)) {
    if (names_.size() < 2) fail<ConfigError>("LabelSet: {} labels; expected at least two classes", names_.size());
    for (std::size_t i = 0; i < names_.size(); ++i) {
      if (names_[i].empty()) fail<ConfigError>("LabelSet: label {} is empty", i);
      if (std::find(names_.begin(), names_.begin() + static_cast<std::ptrdiff_t>(i), names_[i]) !=
          names_.begin() + static_cast<std::ptrdiff_t>(i)) {
        fail<ConfigError>("LabelSet: label \"{}\" stands there twice", names_[i]);
      }
    }
  }
  /// The labels of training records, sorted by their bytes. Throws ConfigError for fewer than two.
  static LabelSet of(std::span<const LabelledRecord> records) {
    std::vector<std::string> names;
    for (const LabelledRecord& record : records) names.push_back(record.label);
    std::sort(names.begin(), names.end());
    names.erase(std::unique(names.begin(), names.end()), names.end());
    return LabelSet(std::move(names));
  }

  Index size() const noexcept { return static_cast<Index>(names_.size()); }
  const std::vector<std::string>& names() const noexcept { return names_; }
  const std::string& name(Index label) const { return names_.at(static_cast<std::size_t>(label)); }
  /// The number of a label, or -1.
  Index find(std::string_view name) const noexcept {
    const auto found = std::find(names_.begin(), names_.end(), name);
    return found != names_.end() ? found - names_.begin() : -1;
  }

 private:
  std::vector<std::string> names_;
};

PEFT_END_NAMESPACE
