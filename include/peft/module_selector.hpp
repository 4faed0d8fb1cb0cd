#pragma once
/// Which modules of a model are meant, as PEFT writes it in `target_modules` and `exclude_modules`: a list of names, a
/// regular expression, or "all-linear". Only the value: what it matches is decided in target_modules.hpp.

#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "peft/config.hpp"

PEFT_BEGIN_NAMESPACE

/// A list of module names (`{"q_proj", "v_proj"}`), one regular expression (`".*\\.[0-3]\\..*_proj"`), or not set.
class ModuleSelector {
 public:
  /// Not set.
  ModuleSelector() = default;
  /// Names: a module is meant where its name is one of them or ends with "." and one of them.
  ModuleSelector(std::initializer_list<std::string> names) : names_(names), set_(true) {}
  ModuleSelector(std::vector<std::string> names) : names_(std::move(names)), set_(true) {}
  /// One regular expression that the module's whole name must match; or "all-linear" in any case of letters.
  ModuleSelector(std::string pattern) : pattern_(std::move(pattern)), set_(true), is_pattern_(true) {}
  ModuleSelector(const char* pattern) : ModuleSelector(std::string(pattern)) {}

  bool is_set() const noexcept { return set_; }
  /// Whether it is one string: a regular expression or "all-linear".
  bool is_pattern() const noexcept { return is_pattern_; }
  /// Every linear layer except the output head.
  bool is_all_linear() const noexcept {
    constexpr const char* kWord = "all-linear";
    if (!is_pattern_) return false;
    std::size_t i = 0;
    for (; i < pattern_.size() && kWord[i] != '\0'; ++i) {
      const char c = pattern_[i];
      if ((c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c) != kWord[i]) return false;
    }
    return i == pattern_.size() && kWord[i] == '\0';
  }
  /// Nothing is meant: not set, an empty list or an empty string (Python's falsehood).
  bool is_empty() const noexcept { return names_.empty() && pattern_.empty(); }
  const std::vector<std::string>& names() const noexcept { return names_; }
  const std::string& pattern() const noexcept { return pattern_; }

  /// As a config file shows it: `["q_proj", "v_proj"]`, `".*_proj"` or `null`.
  std::string text() const {
    if (!set_) return "null";
    if (is_pattern_) return "\"" + pattern_ + "\"";
    std::string result = "[";
    for (const std::string& name : names_) {
      if (result.size() > 1) result += ", ";
      result += "\"" + name + "\"";
    }
    return result + "]";
  }

  friend bool operator==(const ModuleSelector&, const ModuleSelector&) = default;

 private:
  std::vector<std::string> names_;
  std::string pattern_;
  bool set_ = false;
  bool is_pattern_ = false;
};

PEFT_END_NAMESPACE
