#pragma once
/// Members of a JSON object that a foreign program wrote, with errors that name file, member and expectation. A member
/// that is null counts as missing, as it does for Python.

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

#include "hosts/names.hpp"
#include "peft/io/json.hpp"
#include "peft/io/mapped_file.hpp"

namespace peft_examples {

class JsonFields {
 public:
  /// `where` begins every message. Throws FormatError where `object` is no object.
  JsonFields(const peft::Json& object, std::string where) : object_(object), where_(std::move(where)) {
    if (!object.is_object()) {
      peft::fail<peft::FormatError>("{}: it is {}; expected an object", where_, peft::kind_of(object));
    }
  }

  const std::string& where() const noexcept { return where_; }
  const peft::Json& json() const noexcept { return object_; }

  /// The member, or nullptr where it is missing or null.
  const peft::Json* find(std::string_view name) const {
    const auto found = object_.find(std::string(name));
    return found != object_.end() && !found->is_null() ? &*found : nullptr;
  }
  const peft::Json& need(std::string_view name) const {
    const peft::Json* found = find(name);
    if (found == nullptr) peft::fail<peft::FormatError>("{}: has no {}", where_, name);
    return *found;
  }

  Index whole(std::string_view name) const { return whole(name, need(name)); }
  Index whole_or(std::string_view name, Index otherwise) const {
    const peft::Json* found = find(name);
    return found != nullptr ? whole(name, *found) : otherwise;
  }
  double number(std::string_view name) const { return number(name, need(name)); }
  double number_or(std::string_view name, double otherwise) const {
    const peft::Json* found = find(name);
    return found != nullptr ? number(name, *found) : otherwise;
  }
  bool truth_or(std::string_view name, bool otherwise) const {
    const peft::Json* found = find(name);
    if (found == nullptr) return otherwise;
    if (!found->is_boolean()) wrong(name, *found, "true or false");
    return found->get<bool>();
  }
  const std::string& text(std::string_view name) const { return text(name, need(name)); }
  std::string text_or(std::string_view name, std::string_view otherwise) const {
    const peft::Json* found = find(name);
    return found != nullptr ? text(name, *found) : std::string(otherwise);
  }
  /// A member's object. Throws FormatError where it is missing or something else.
  JsonFields object(std::string_view name) const { return {need(name), where_ + ", " + std::string(name)}; }
  const peft::Json& list(std::string_view name) const {
    const peft::Json& found = need(name);
    if (!found.is_array()) wrong(name, found, "a list");
    return found;
  }

  /// Throws FormatError for the first member that is not among `known`.
  void allow_only(std::initializer_list<std::string_view> known) const {
    for (const auto& [name, value] : object_.items()) {
      if (std::find(known.begin(), known.end(), name) != known.end()) continue;
      peft::fail<peft::FormatError>("{}: {} is {}, which is not supported; supported are {}", where_,
                                    peft::quote_text(name), show(value), fmt::join(known, ", "));
    }
  }
  [[noreturn]] void wrong(std::string_view name, const peft::Json& value, std::string_view expected) const {
    peft::fail<peft::FormatError>("{}: {} is {}; expected {}", where_, name, show(value), expected);
  }

 private:
  static std::string show(const peft::Json& value) {
    if (value.is_string()) return peft::quote_text(value.get_ref<const std::string&>());
    return value.is_number() ? value.dump() : std::string(peft::kind_of(value));
  }
  Index whole(std::string_view name, const peft::Json& value) const {
    if (value.is_number_integer() && (!value.is_number_unsigned() || value.get<std::uint64_t>() < (std::uint64_t{1} << 62))) {
      return value.get<Index>();
    }
    wrong(name, value, "a whole number");
  }
  double number(std::string_view name, const peft::Json& value) const {
    if (!value.is_number()) wrong(name, value, "a number");
    return value.get<double>();
  }
  const std::string& text(std::string_view name, const peft::Json& value) const {
    if (!value.is_string()) wrong(name, value, "a text");
    return value.get_ref<const std::string&>();
  }

  const peft::Json& object_;
  std::string where_;
};

/// A file's JSON. Throws IoError, FormatError.
inline peft::Json read_json(const std::filesystem::path& path) {
  const auto file = peft::MappedFile::open(path);
  const std::string_view text(reinterpret_cast<const char*>(file->bytes().data()), file->bytes().size());
  return peft::parse_json(text, path.string(), 64);
}

}  // namespace peft_examples
