#pragma once
/// Instruction files: one JSON object per line with `instruction`, `input` (optional) and `output`; `facts` (optional,
/// a list of texts) names what a right answer contains. Other fields are left alone. Nothing is skipped silently: a
/// line that does not fit is an error with file, line and column.

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "peft/core/scalar.hpp"
#include "peft/data/jsonl.hpp"
#include "peft/error.hpp"

PEFT_BEGIN_NAMESPACE

/// One record of an instruction file.
struct InstructionRecord {
  std::string instruction;
  std::string input;
  std::string output;
  std::vector<std::string> facts{};
  Index line = 0;  ///< line of the file, from 1
};

/// All records of `path`, or the first `max_records` where that is not negative. Blank lines, a byte order mark and
/// CRLF are allowed. Throws IoError; FormatError, also for a file without a record.
inline std::vector<InstructionRecord> read_instruction_jsonl(const std::filesystem::path& path, Index max_records = -1) {
  constexpr std::string_view kExpected = "\"instruction\" and \"output\"";
  std::vector<InstructionRecord> records;
  const auto take = [&](const nlohmann::json& object, const std::string& where, Index line) {
    InstructionRecord record;
    record.instruction = detail::text_field(object, "instruction", true, where, kExpected);
    record.input = detail::text_field(object, "input", false, where, kExpected);
    record.output = detail::text_field(object, "output", true, where, kExpected);
    record.line = line;
    if (const auto facts = object.find("facts"); facts != object.end() && !facts->is_null()) {
      if (!facts->is_array()) {
        fail<FormatError>("{}: field \"facts\" is a {}; expected a list of texts", where, facts->type_name());
      }
      for (const auto& fact : *facts) {
        if (!fact.is_string()) {
          fail<FormatError>("{}: field \"facts\" holds a {}; expected texts", where, fact.type_name());
        }
        record.facts.push_back(fact.get<std::string>());
      }
    }
    if (record.output.empty()) fail<FormatError>("{}: field \"output\" is empty; there is nothing to learn", where);
    records.push_back(std::move(record));
  };
  detail::for_each_json_line(path, "instruction file", "{\"instruction\": …, \"input\": …, \"output\": …}", kExpected,
                             max_records, take);
  return records;
}

PEFT_END_NAMESPACE
