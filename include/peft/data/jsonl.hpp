#pragma once
/// Files with one JSON object per line: what the readers of records have in common. Nothing is skipped silently: a line that
/// does not fit is an error with file, line and column.

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "peft/core/scalar.hpp"
#include "peft/error.hpp"

PEFT_BEGIN_NAMESPACE
namespace detail {

/// nlohmann's parser with an ear for a name that an object has twice (the parser itself keeps the last one). `example`: an
/// object as it should stand there.
inline nlohmann::json parse_line(const std::string& text, const std::string& where, std::string_view example) {
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
    fail<FormatError>("{}, column {}: not valid JSON ({}); expected one object like {}", where, error.byte, error.what(),
                      example);
  } catch (const nlohmann::json::out_of_range& error) {
    fail<FormatError>("{}: a number is too large for a double ({})", where, error.what());
  }
}

/// A field's text; "" for one that is missing or null and not required. `expected`: the fields that are.
inline std::string text_field(const nlohmann::json& object, const char* name, bool required, const std::string& where,
                              std::string_view expected) {
  const auto found = object.find(name);
  if (found == object.end() || found->is_null()) {
    if (!required) return {};
    fail<FormatError>("{}: field \"{}\" is missing; expected {} as texts", where, name, expected);
  }
  if (!found->is_string()) {
    fail<FormatError>("{}: field \"{}\" is a {}; expected a text", where, name, found->type_name());
  }
  return found->get<std::string>();
}

/// Calls take(object, where, line) for the file's objects, or the first `max_records` where that is not negative; lines count
/// from 1. Blank lines, a byte order mark and CRLF are allowed. `what`: the file's kind, for messages. Throws IoError;
/// FormatError, also for a file without a record.
template <class Take>
void for_each_json_line(const std::filesystem::path& path, std::string_view what, std::string_view example,
                        std::string_view expected, Index max_records, Take&& take) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail<IoError>("reading {} {}: it cannot be opened", what, path.string());
  std::string text;
  Index records = 0;
  for (Index line = 1; records != max_records && std::getline(file, text); ++line) {
    if (line == 1 && text.compare(0, 3, "\xEF\xBB\xBF") == 0) text.erase(0, 3);
    if (!text.empty() && text.back() == '\r') text.pop_back();
    if (text.find_first_not_of(" \t") == std::string::npos) continue;
    const std::string where = fmt::format("{}, line {}", path.string(), line);
    const nlohmann::json object = parse_line(text, where, example);
    if (!object.is_object()) fail<FormatError>("{}: a {}; expected an object with {}", where, object.type_name(), expected);
    take(object, where, line);
    ++records;
  }
  if (file.bad()) fail<IoError>("reading {} {}: the read failed", what, path.string());
  if (records == 0) fail<FormatError>("{}: no record; expected one JSON object per line", path.string());
}

}  // namespace detail
PEFT_END_NAMESPACE
