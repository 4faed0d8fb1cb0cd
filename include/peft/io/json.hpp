#pragma once
/// JSON from files that nobody vouches for: no duplicate keys, bounded depth, the order of members kept.

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <cstddef>
#include <string>
#include <string_view>
#include <type_traits>
#include <unordered_set>
#include <utility>
#include <vector>

#include "peft/core/separate.hpp"
#include "peft/error.hpp"
#include "peft/io/text.hpp"

PEFT_BEGIN_NAMESPACE

/// Members keep the order in which the file has them.
using Json = nlohmann::ordered_json;

/// Parses `text`, which must be one JSON value in UTF-8. `where` begins every message: "adapter config DIR/…". Throws
/// FormatError: syntax (with byte, line and column), a key that stands twice in an object, or more than `max_depth`
/// objects and arrays within each other.
PEFT_SEPARABLE Json parse_json(std::string_view text, std::string_view where, std::size_t max_depth = 32);

/// The shortest number that is this float: 0.05, not 0.05000000074505806, and 16, not 16.0.
PEFT_SEPARABLE Json shortest_number(float value);

/// Whether the two are equal, a whole number and the same with a point among them.
PEFT_SEPARABLE bool same_value(const Json& a, const Json& b);

/// Whether `value` is this string.
inline bool is_text(const Json& value, std::string_view text) noexcept {
  const auto* own = value.get_ptr<const Json::string_t*>();
  return own != nullptr && *own == text;
}

/// The kind of a value, for messages: "a string", "null", …
inline std::string_view kind_of(const Json& value) noexcept {
  switch (value.type()) {
    case Json::value_t::null:
      return "null";
    case Json::value_t::object:
      return "an object";
    case Json::value_t::array:
      return "a list";
    case Json::value_t::string:
      return "a string";
    case Json::value_t::boolean:
      return value.get<bool>() ? "true" : "false";
    default:
      return "a number";
  }
}

#if PEFT_DEFINES_SEPARABLE
namespace detail {

/// Builds a value from the parser's events and throws FormatError at the first that breaks a rule.
class JsonBuilder {
 public:
  using number_integer_t = Json::number_integer_t;
  using number_unsigned_t = Json::number_unsigned_t;
  using number_float_t = Json::number_float_t;
  using string_t = Json::string_t;
  using binary_t = Json::binary_t;

  JsonBuilder(std::string_view where, std::size_t max_depth) : where_(where), max_depth_(max_depth) {}

  Json take() { return std::move(root_); }

  bool null() { return place(nullptr) != nullptr; }
  bool boolean(bool value) { return place(value) != nullptr; }
  bool number_integer(number_integer_t value) { return place(value) != nullptr; }
  bool number_unsigned(number_unsigned_t value) { return place(value) != nullptr; }
  bool number_float(number_float_t value, const string_t&) { return place(value) != nullptr; }
  bool string(string_t& value) { return place(std::move(value)) != nullptr; }
  bool binary(binary_t&) { return false; }
  bool start_object(std::size_t) {
    open(place(Json::object()));
    return true;
  }
  bool key(string_t& value) {
    if (!open_.back().keys.insert(value).second) {
      fail<FormatError>("{}: the key {} stands twice in one object; expected keys to be distinct", where_, quote_text(value));
    }
    // The set has checked it; emplace of an ordered map would search all members again.
    auto& members = open_.back().node->get_ref<Json::object_t&>();
    members.push_back({std::move(value), Json()});
    slot_ = &members.back().second;
    return true;
  }
  bool end_object() { return close(); }
  bool start_array(std::size_t) {
    open(place(Json::array()));
    return true;
  }
  bool end_array() { return close(); }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& error) {
    // "[json.exception.parse_error.101] parse error at line 1, column 5: …": its own name says nothing to a reader.
    const std::string_view text = error.what();
    const std::size_t start = text.find("] ");
    fail<FormatError>("{}: not valid JSON at byte {}: {}", where_, position,
                      start == std::string_view::npos ? text : text.substr(start + 2));
  }

 private:
  struct Open {
    Json* node;
    std::unordered_set<std::string> keys;
  };

  template <class Value>
  Json* place(Value&& value) {
    if (open_.empty()) {
      root_ = Json(std::forward<Value>(value));
      return &root_;
    }
    Json& parent = *open_.back().node;
    if (parent.is_array()) {
      parent.push_back(Json(std::forward<Value>(value)));
      return &parent.back();
    }
    *slot_ = Json(std::forward<Value>(value));
    return slot_;
  }

  // A node's address holds while it is open: its siblings are added after it is closed.
  void open(Json* node) {
    if (open_.size() >= max_depth_) {
      fail<FormatError>("{}: values are nested more than {} deep", where_, max_depth_);
    }
    open_.push_back({node, {}});
  }
  bool close() {
    open_.pop_back();
    return true;
  }

  std::string_view where_;
  std::size_t max_depth_;
  Json root_;
  std::vector<Open> open_;
  Json* slot_ = nullptr;
};

}  // namespace detail

PEFT_SEPARABLE Json parse_json(std::string_view text, std::string_view where, std::size_t max_depth) {
  detail::JsonBuilder builder(where, max_depth);
  Json::sax_parse(text.begin(), text.end(), &builder);
  return builder.take();
}

PEFT_SEPARABLE Json shortest_number(float value) { return parse_json(fmt::format("{}", value), "a number"); }

PEFT_SEPARABLE bool same_value(const Json& a, const Json& b) { return a == b; }
#endif

PEFT_END_NAMESPACE
