#pragma once
/// Instruction files: one JSON object per line with `instruction`, `input` (optional) and `output`; `facts` (optional,
/// a list of texts) names what a right answer contains. Other fields are left alone. Nothing is skipped silently: a
/// line that does not fit is an error with file, line and column.

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <unordered_set>
#include <vector>

#include "peft/core/scalar.hpp"
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

namespace detail {

/// nlohmann's parser with an ear for a name that an object has twice (the parser itself keeps the last one).
inline nlohmann::json parse_line(const std::string& text, const std::string& where) {
  std::vector<std::unordered_set<std::string>> names;  // of every object that is open
  const nlohmann::json::parser_callback_t listen = [&](int, nlohmann::json::parse_event_t event, nlohmann::json& value) {
    if (event == nlohmann::json::parse_event_t::object_start) names.emplace_back();
    if (event == nlohmann::json::parse_event_t::object_end) names.pop_back();
    if (event == nlohmann::json::parse_event_t::key) {
      const auto name = value.get<std::string>();
      if (!names.back().insert(name).second) fail<FormatError>("{}: field \"{}\" stands there twice", where, name);
    }
    return true;
  };
  try {
    return nlohmann::json::parse(text, listen);
  } catch (const nlohmann::json::parse_error& error) {
    fail<FormatError>("{}, column {}: not valid JSON ({}); expected one object like {{\"instruction\": …, \"input\": …, "
                      "\"output\": …}}",
                      where, error.byte, error.what());
  } catch (const nlohmann::json::out_of_range& error) {
    fail<FormatError>("{}: a number is too large for a double ({})", where, error.what());
  }
}

inline std::string text_field(const nlohmann::json& object, const char* name, bool required, const std::string& where) {
  const auto found = object.find(name);
  if (found == object.end() || found->is_null()) {
    if (!required) return {};
    fail<FormatError>("{}: field \"{}\" is missing; expected \"instruction\" and \"output\" as texts", where, name);
  }
  if (!found->is_string()) {
    fail<FormatError>("{}: field \"{}\" is a {}; expected a text", where, name, found->type_name());
  }
  return found->get<std::string>();
}

}  // namespace detail

/// All records of `path`, or the first `max_records` where that is not negative. Blank lines, a byte order mark and
/// CRLF are allowed. Throws IoError; FormatError, also for a file without a record.
inline std::vector<InstructionRecord> read_instruction_jsonl(const std::filesystem::path& path, Index max_records = -1) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail<IoError>("reading instruction file {}: it cannot be opened", path.string());
  std::vector<InstructionRecord> records;
  std::string text;
  for (Index line = 1; static_cast<Index>(records.size()) != max_records && std::getline(file, text); ++line) {
    if (line == 1 && text.compare(0, 3, "\xEF\xBB\xBF") == 0) text.erase(0, 3);
    if (!text.empty() && text.back() == '\r') text.pop_back();
    if (text.find_first_not_of(" \t") == std::string::npos) continue;
    const std::string where = fmt::format("{}, line {}", path.string(), line);
    const nlohmann::json object = detail::parse_line(text, where);
    if (!object.is_object()) {
      fail<FormatError>("{}: a {}; expected an object with \"instruction\" and \"output\"", where, object.type_name());
    }
    InstructionRecord record;
    record.instruction = detail::text_field(object, "instruction", true, where);
    record.input = detail::text_field(object, "input", false, where);
    record.output = detail::text_field(object, "output", true, where);
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
  }
  if (file.bad()) fail<IoError>("reading instruction file {}: the read failed", path.string());
  if (records.empty()) {
    fail<FormatError>("{}: no record; expected one JSON object per line", path.string());
  }
  return records;
}

PEFT_END_NAMESPACE
