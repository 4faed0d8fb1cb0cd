#pragma once
/// A regular expression on module names with Python's meaning, run by std::regex (ECMAScript). Where the two languages
/// differ, the construct is refused by name and position; nothing is matched in another sense than Python's.

#include <regex>
#include <string>
#include <string_view>

#include "peft/core/scalar.hpp"
#include "peft/error.hpp"

PEFT_BEGIN_NAMESPACE

namespace detail {

/// Reads a pattern once, left to right, and throws ConfigError at what Python would refuse or read differently.
class PatternScan {
 public:
  PatternScan(std::string_view field, std::string_view pattern) : field_(field), pattern_(pattern) {}

  void run() {
    if (pattern_.size() > kMaxLength) {
      fail<ConfigError>("{}: the pattern has {} characters; expected at most {}", field_, pattern_.size(), kMaxLength);
    }
    while (at_ < pattern_.size()) step();
    if (depth_ > 0) refuse(open_[depth_ - 1], "group is never closed");
  }

 private:
  static constexpr std::size_t kMaxLength = 4096;
  static constexpr int kMaxDepth = 64;
  enum class Last : std::uint8_t { kNothing, kAtom, kQuantifier, kLazy };

  void step() {
    switch (pattern_[at_]) {
      case '\\':
        escape();
        last_ = Last::kAtom;
        break;
      case '[':
        character_class();
        last_ = Last::kAtom;
        break;
      case '(':
        open_group();
        last_ = Last::kNothing;
        break;
      case ')':
        if (depth_ == 0) refuse(at_, "')' closes no group");
        --depth_;
        ++at_;
        last_ = Last::kAtom;
        break;
      case '|':
      case '^':
      case '$':
        ++at_;
        last_ = Last::kNothing;
        break;
      case '*':
      case '+':
      case '?':
        quantifier(1);
        break;
      case '{':
        quantifier(brace_length());
        break;
      case '}':
        refuse(at_, "'}' without a quantifier; write \\}");
      default:
        ++at_;
        last_ = Last::kAtom;
    }
  }

  void quantifier(std::size_t length) {
    const char sign = pattern_[at_];
    if (last_ == Last::kNothing) refuse(at_, "nothing to repeat");
    if (last_ == Last::kQuantifier && sign == '+') refuse(at_, "possessive quantifier");
    if (last_ == Last::kLazy || (last_ == Last::kQuantifier && sign != '?')) refuse(at_, "multiple repeat");
    last_ = last_ == Last::kQuantifier ? Last::kLazy : Last::kQuantifier;
    at_ += length;
  }

  /// Length of {n}, {n,} or {n,m}.
  std::size_t brace_length() const {
    std::size_t i = at_ + 1;
    const auto digits = [&] {
      const std::size_t first = i;
      while (i < pattern_.size() && pattern_[i] >= '0' && pattern_[i] <= '9') ++i;
      return pattern_.substr(first, i - first);
    };
    const std::string_view low = digits();
    std::string_view high;
    if (i < pattern_.size() && pattern_[i] == ',') {
      ++i;
      high = digits();
    }
    if (low.empty() || low.size() > 4 || high.size() > 4 || i >= pattern_.size() || pattern_[i] != '}') {
      refuse(at_, "'{' that does not start {n}, {n,} or {n,m}");
    }
    if (!high.empty() && std::stoi(std::string(high)) < std::stoi(std::string(low))) {
      refuse(at_, "quantifier whose upper limit is below its lower");
    }
    return i + 1 - at_;
  }

  void open_group() {
    if (depth_ == kMaxDepth) refuse(at_, "too many nested groups");
    open_[depth_++] = at_;
    const std::string_view rest = pattern_.substr(at_);
    if (!rest.starts_with("(?")) {
      ++at_;
      return;
    }
    if (rest.starts_with("(?:") || rest.starts_with("(?=") || rest.starts_with("(?!")) {
      at_ += 3;
      return;
    }
    if (rest.starts_with("(?P<")) refuse(at_, "named group (?P<…>)");
    if (rest.starts_with("(?P=")) refuse(at_, "named back-reference (?P=…)");
    if (rest.starts_with("(?<=") || rest.starts_with("(?<!")) refuse(at_, "lookbehind (?<…)");
    if (rest.starts_with("(?#")) refuse(at_, "comment (?#…)");
    if (rest.starts_with("(?(")) refuse(at_, "conditional (?(…)…)");
    if (rest.starts_with("(?>")) refuse(at_, "atomic group (?>…)");
    refuse(at_, "inline flags (?…)");
  }

  void escape() {
    if (at_ + 1 >= pattern_.size()) refuse(at_, "'\\' at the end");
    const char c = pattern_[at_ + 1];
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if ((letter && std::string_view("dDsSwWbBntrfv").find(c) == std::string_view::npos) || (c >= '0' && c <= '9')) {
      refuse(at_, fmt::format("escape \\{}", c));
    }
    at_ += 2;
  }

  void character_class() {
    const std::size_t start = at_++;
    if (peek() == '^') ++at_;
    if (peek() == ']') refuse(at_, "']' as the first of a class; write \\]");
    int previous = -1;  // the last single character, for ranges
    while (true) {
      if (at_ >= pattern_.size()) refuse(start, "character class is never closed");
      const char c = pattern_[at_];
      if (c == ']') break;
      if (c == '[' && (peek(1) == ':' || peek(1) == '=' || peek(1) == '.')) refuse(at_, "POSIX class [[:…:]]");
      if (c == '-' && previous >= 0 && peek(1) != ']' && peek(1) != '\0') {
        ++at_;
        const int upper = class_member();
        if (upper < 0 || upper < previous) refuse(at_ - 1, "range in a class that does not go upwards");
        previous = -1;
        continue;
      }
      previous = class_member();
    }
    ++at_;
  }

  /// Steps over one member of a class: its character, or -1 for an escape that stands for many.
  int class_member() {
    const char c = pattern_[at_];
    if (c != '\\') {
      ++at_;
      return static_cast<unsigned char>(c);
    }
    const std::size_t start = at_;
    escape();
    const char escaped = pattern_[start + 1];
    const bool letter = (escaped >= 'a' && escaped <= 'z') || (escaped >= 'A' && escaped <= 'Z');
    return letter ? -1 : static_cast<unsigned char>(escaped);
  }

  char peek(std::size_t ahead = 0) const { return at_ + ahead < pattern_.size() ? pattern_[at_ + ahead] : '\0'; }

  [[noreturn]] void refuse(std::size_t position, std::string_view what) const {
    fail<ConfigError>("{}: the pattern \"{}\" is not supported: {} at character {}", field_, pattern_, what,
                      position + 1);
  }

  std::string_view field_;
  std::string_view pattern_;
  std::size_t at_ = 0;
  int depth_ = 0;
  std::size_t open_[kMaxDepth] = {};
  Last last_ = Last::kNothing;
};

}  // namespace detail

/// A compiled pattern.
class ModulePattern {
 public:
  /// Compiles prefix + pattern + suffix, of which only `pattern` is the user's and is checked. Throws ConfigError
  /// naming `field` ("LoraConfig: target_modules") and the position where Python would refuse the pattern or read it
  /// otherwise.
  ModulePattern(std::string_view field, std::string_view pattern, std::string_view prefix = {},
                std::string_view suffix = {}) {
    detail::PatternScan(field, pattern).run();
    std::string whole(prefix);
    whole += pattern;
    whole += suffix;
    try {
      regex_.assign(whole, std::regex::ECMAScript);
    } catch (const std::regex_error& error) {
      fail<ConfigError>("{}: the pattern \"{}\" does not compile: {}", field, pattern, error.what());
    }
  }

  /// Python's re.fullmatch.
  bool matches_all(std::string_view name) const { return std::regex_match(name.begin(), name.end(), regex_); }

  /// Python's re.match, and whether it did; `group` gets the text of the last capture group, empty where it took no
  /// part.
  bool matches_start(std::string_view name, std::string& group) const {
    std::match_results<std::string_view::const_iterator> found;
    if (!std::regex_search(name.begin(), name.end(), found, regex_, std::regex_constants::match_continuous)) {
      return false;
    }
    group = found.str(regex_.mark_count());
    return true;
  }

 private:
  std::regex regex_;
};

PEFT_END_NAMESPACE
