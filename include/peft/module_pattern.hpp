#pragma once
/// A regular expression on module names with Python's meaning, run by std::regex (ECMAScript). Where the two languages
/// differ, the construct is refused by name and position; nothing is matched in another sense than Python's. Patterns
/// come with files of strangers: how long one may take, and how deep it may nest, is bounded.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <regex>
#include <string>
#include <string_view>

#include "peft/core/scalar.hpp"
#include "peft/core/separate.hpp"
#include "peft/error.hpp"

PEFT_BEGIN_NAMESPACE

/// What a pattern is matched against.
enum class PatternUse : bool {
  kWholeName,   ///< fullmatch, in a time that grows as pattern × name
  kStartOfName  ///< match with a group, by trying one way after another: few ways are allowed
};

namespace detail {

/// Reads a pattern once, left to right, and throws ConfigError at what Python would refuse or read differently, and at
/// what would take too long or too much stack.
class PatternScan {
 public:
  PatternScan(std::string_view field, std::string_view pattern, PatternUse use)
      : field_(field), pattern_(pattern), use_(use) {}

  void run() {
    if (pattern_.size() > kMaxLength) {
      fail<ConfigError>("{}: the pattern has {} characters; expected at most {}", field_, pattern_.size(), kMaxLength);
    }
    while (at_ < pattern_.size()) {
      step();
      if (choices_[depth_] + atom_choices_ > (use_ == PatternUse::kWholeName ? kMaxChoices : kMaxStartChoices)) {
        fail<ConfigError>("{}: the pattern \"{}\" has too many repetitions, alternatives and groups, counted as often "
                          "as they are repeated; write a simpler one",
                          field_, pattern_);
      }
    }
    if (depth_ > 0) refuse(open_[depth_ - 1], "group is never closed");
  }

 private:
  static constexpr std::size_t kMaxLength = 4096;
  static constexpr int kMaxDepth = 64;
  // std::regex calls itself for each choice that it passes without reading a character: 2 KiB of stack with sanitizers.
  static constexpr std::size_t kMaxChoices = 1000;
  // Here the ways to try grow as (length of the name) to the power of the repetitions: three of those are allowed, or
  // some alternatives.
  static constexpr std::size_t kMaxStartChoices = 12;
  static constexpr std::size_t kStartRepetition = 4;
  enum class Last : std::uint8_t { kNothing, kAtom, kQuantifier, kLazy };

  void step() {
    switch (pattern_[at_]) {
      case '\\':
        escape();
        atom(0);
        break;
      case '[':
        character_class();
        atom(0);
        break;
      case '(':
        open_group();
        last_ = Last::kNothing;
        break;
      case ')':
        if (depth_ == 0) refuse(at_, "')' closes no group");
        close_group();
        break;
      case '|':
        ++choices_[depth_];
        [[fallthrough]];
      case '^':
      case '$':
        if (pattern_[at_] == '^' && lookaheads_ > 0) refuse(at_, "'^' in a lookahead");
        ++at_;
        last_ = Last::kNothing;
        break;
      case '*':
      case '+':
      case '?':
        quantifier(1);
        break;
      case '{':
        braces();
        break;
      case '}':
        refuse(at_, "'}' without a quantifier; write \\}");
      default:
        ++at_;
        atom(0);
    }
  }

  /// The next thing that can be repeated, with the choices within it.
  void atom(std::size_t choices, bool is_group = false) {
    choices_[depth_] += atom_choices_;
    atom_choices_ = choices;
    atom_is_group_ = is_group;
    last_ = Last::kAtom;
  }

  void quantifier(std::size_t length, std::size_t times = 1) {
    const char sign = pattern_[at_];
    if (last_ == Last::kNothing) refuse(at_, "nothing to repeat");
    if (last_ == Last::kQuantifier && sign == '+') refuse(at_, "possessive quantifier");
    if (last_ == Last::kLazy || (last_ == Last::kQuantifier && sign != '?')) refuse(at_, "multiple repeat");
    if (last_ == Last::kAtom) {
      const bool costly = use_ == PatternUse::kStartOfName && sign != '?';
      if (costly && atom_is_group_) refuse(at_, "repetition of a group, here where only a part of a name has to match");
      atom_choices_ = (atom_choices_ + (costly ? kStartRepetition : 1)) * std::max<std::size_t>(times, 1);
    }
    last_ = last_ == Last::kQuantifier ? Last::kLazy : Last::kQuantifier;
    at_ += length;
  }

  /// {n}, {n,} or {n,m}.
  void braces() {
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
    quantifier(i + 1 - at_, std::stoul(std::string(high.empty() ? low : high)));
  }

  void close_group() {
    const std::size_t within = choices_[depth_] + atom_choices_ + 1;
    --depth_;
    if (is_lookahead(open_[depth_])) --lookaheads_;
    ++at_;
    atom_choices_ = 0;  // what stood before the group is in choices_ already
    atom(within, true);
  }

  void open_group() {
    if (depth_ == kMaxDepth) refuse(at_, "too many nested groups");
    choices_[depth_] += atom_choices_;
    atom_choices_ = 0;
    open_[depth_++] = at_;
    choices_[depth_] = 0;
    const std::string_view rest = pattern_.substr(at_);
    if (!rest.starts_with("(?")) {
      ++at_;
      return;
    }
    if (rest.starts_with("(?:") || is_lookahead(at_)) {
      if (is_lookahead(at_)) ++lookaheads_;
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

  bool is_lookahead(std::size_t group) const {
    const std::string_view rest = pattern_.substr(group);
    return rest.starts_with("(?=") || rest.starts_with("(?!");
  }

  void escape() {
    if (at_ + 1 >= pattern_.size()) refuse(at_, "'\\' at the end");
    const char c = pattern_[at_ + 1];
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if ((letter && std::string_view("dDsSwWbBntrfv").find(c) == std::string_view::npos) || (c >= '0' && c <= '9')) {
      refuse(at_, fmt::format("escape \\{}", c));
    }
    // libstdc++ takes a lookahead's place for the start of the text.
    if ((c == 'b' || c == 'B') && lookaheads_ > 0) refuse(at_, fmt::format("escape \\{} in a lookahead", c));
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
  PatternUse use_;
  std::size_t at_ = 0;
  int depth_ = 0;
  int lookaheads_ = 0;  // open ones
  std::size_t open_[kMaxDepth] = {};
  std::size_t choices_[kMaxDepth + 1] = {};  // of the pattern and of each open group, without the last atom's
  std::size_t atom_choices_ = 0;
  bool atom_is_group_ = false;
  Last last_ = Last::kNothing;
};

}  // namespace detail

/// A compiled pattern.
class ModulePattern {
 public:
  /// Compiles prefix + pattern + suffix, of which only `pattern` is the user's and is checked. Throws ConfigError
  /// naming `field` ("LoraConfig: target_modules") and the position where Python would refuse the pattern or read it
  /// otherwise; also where it has more choices than `use` allows.
  ModulePattern(std::string_view field, std::string_view pattern, PatternUse use, std::string_view prefix = {},
                std::string_view suffix = {});

  /// Python's re.fullmatch; made for PatternUse::kWholeName.
  bool matches_all(std::string_view name) const;

  /// Python's re.match, and whether it did; `group` gets the text of the last capture group, empty where it took no
  /// part. Made for PatternUse::kStartOfName.
  bool matches_start(std::string_view name, std::string& group) const;

 private:
  std::regex regex_;
};

#if PEFT_DEFINES_SEPARABLE
PEFT_SEPARABLE ModulePattern::ModulePattern(std::string_view field, std::string_view pattern, PatternUse use,
                                            std::string_view prefix, std::string_view suffix) {
  detail::PatternScan(field, pattern, use).run();
  std::string whole(prefix);
  whole += pattern;
  whole += suffix;
  try {
    auto flags = std::regex::ECMAScript;
    if (use == PatternUse::kWholeName) flags |= std::regex::nosubs;
#ifdef __GLIBCXX__
    // Follows all ways at once instead of one after another, which takes "(.+)+x" a time exponential in the name's
    // length. Whether the whole name matches is the same; which way a group took is not.
    if (use == PatternUse::kWholeName) flags |= std::regex_constants::__polynomial;
#endif
    regex_.assign(whole, flags);
  } catch (const std::regex_error& error) {
    fail<ConfigError>("{}: the pattern \"{}\" does not compile: {}", field, pattern, error.what());
  }
}

PEFT_SEPARABLE bool ModulePattern::matches_all(std::string_view name) const {
  return std::regex_match(name.begin(), name.end(), regex_);
}

PEFT_SEPARABLE bool ModulePattern::matches_start(std::string_view name, std::string& group) const {
  std::match_results<std::string_view::const_iterator> found;
  if (!std::regex_search(name.begin(), name.end(), found, regex_, std::regex_constants::match_continuous)) {
    return false;
  }
  group = found.str(regex_.mark_count());
  return true;
}
#endif

PEFT_END_NAMESPACE
