#pragma once
/// Which modules a LoraConfig adapts, and with which rank and scale: PEFT's meaning of target_modules, exclude_modules,
/// layers_to_transform, layers_pattern, rank_pattern and alpha_pattern.

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "peft/lora_config.hpp"
#include "peft/module_pattern.hpp"

PEFT_BEGIN_NAMESPACE

/// A ModuleSelector made ready to match.
///  - list: the name is an entry, or ends with "." + entry;
///  - regular expression: the whole name matches;
///  - "all-linear": is left to the caller, who knows the names.
class SelectorMatcher {
 public:
  SelectorMatcher(std::string_view field, const ModuleSelector& selector) : names_(selector.names()) {
    if (selector.is_pattern() && !selector.is_all_linear() && !selector.is_empty()) {
      pattern_.emplace_back(field, selector.pattern(), PatternUse::kWholeName);
    }
  }

  enum class Match : std::uint8_t { kNo, kSuffix, kWhole };

  Match match(std::string_view name) const {
    if (!pattern_.empty()) return pattern_.front().matches_all(name) ? Match::kWhole : Match::kNo;
    Match result = Match::kNo;
    for (const std::string& entry : names_) {
      if (name == entry) return Match::kWhole;
      if (entry_fits(entry, name)) result = Match::kSuffix;
    }
    return result;
  }

  /// Whether `name` is `entry` or ends with "." + entry.
  static bool entry_fits(std::string_view entry, std::string_view name) noexcept {
    if (name == entry) return true;
    return name.size() > entry.size() && name.ends_with(entry) && name[name.size() - entry.size() - 1] == '.';
  }

 private:
  std::vector<std::string> names_;
  std::vector<ModulePattern> pattern_;  // none or one
};

/// A LoraConfig made ready to match: patterns are compiled once.
class TargetMatcher {
 public:
  /// Validates `config`; throws ConfigError naming the field.
  explicit TargetMatcher(const LoraConfig& config)
      : config_((config.validate(), config)),
        targets_("LoraConfig: target_modules", config.target_modules),
        excluded_("LoraConfig: exclude_modules", config.exclude_modules) {
    for (const std::string& pattern : config.layers_pattern) {
      layers_.emplace_back("LoraConfig: layers_pattern", pattern, PatternUse::kStartOfName, "(?:^|.*?\\.)",
                           "\\.(\\d+)\\.");
    }
    if (layers_.empty()) {
      layers_.emplace_back("LoraConfig: layers_pattern", "", PatternUse::kStartOfName, ".*?\\.[^.]*\\.(\\d+)\\.");
    }
    for (const auto& [key, rank] : config.rank_pattern) {
      ranks_.emplace_back(
          ModulePattern("LoraConfig: rank_pattern", key, PatternUse::kWholeName, "(.*\\.)?(", ")"), rank);
    }
    for (const auto& [key, alpha] : config.alpha_pattern) {
      alphas_.emplace_back(
          ModulePattern("LoraConfig: alpha_pattern", key, PatternUse::kWholeName, "(.*\\.)?(", ")"), alpha);
    }
  }

  const LoraConfig& config() const noexcept { return config_; }

  /// Whether the module is adapted; for "all-linear", `name` must be a linear layer's and not the output head's.
  bool matches(std::string_view name) const {
    if (!config_.exclude_modules.is_empty() && excluded_.match(name) != SelectorMatcher::Match::kNo) return false;
    if (config_.target_modules.is_all_linear()) return true;
    const auto match = targets_.match(name);
    if (match == SelectorMatcher::Match::kNo) return false;
    // A module that the list names in full is taken whatever its layer.
    if (match == SelectorMatcher::Match::kWhole || config_.layers_to_transform.empty()) return true;
    return layer_is_wanted(name);
  }

  Index rank(std::string_view name) const {
    for (const auto& [pattern, rank] : ranks_) {
      if (pattern.matches_all(name)) return rank;
    }
    return config_.r;
  }
  double alpha(std::string_view name) const {
    for (const auto& [pattern, alpha] : alphas_) {
      if (pattern.matches_all(name)) return alpha;
    }
    return config_.lora_alpha;
  }
  double scaling(std::string_view name) const { return lora_scaling(alpha(name), rank(name), config_.use_rslora); }

 private:
  bool layer_is_wanted(std::string_view name) const {
    std::string digits;
    for (const ModulePattern& pattern : layers_) {
      if (!pattern.matches_start(name, digits)) continue;
      if (digits.empty() || digits.size() > 9) return false;
      const Index layer = std::stol(digits);
      return std::find(config_.layers_to_transform.begin(), config_.layers_to_transform.end(), layer) !=
             config_.layers_to_transform.end();
    }
    return false;
  }

  LoraConfig config_;
  SelectorMatcher targets_;
  SelectorMatcher excluded_;
  std::vector<ModulePattern> layers_;
  std::vector<std::pair<ModulePattern, Index>> ranks_;
  std::vector<std::pair<ModulePattern, double>> alphas_;
};

/// Rank of the update on `module`.
inline Index rank_for(const LoraConfig& config, std::string_view module) { return TargetMatcher(config).rank(module); }

/// Scale of the update on `module`.
inline double scaling_for(const LoraConfig& config, std::string_view module) {
  return TargetMatcher(config).scaling(module);
}

/// One adapted module: its place in the list of names, its rank and scale.
struct TargetMatch {
  std::size_t module = 0;
  Index r = 0;
  double scaling = 0;
};

/// What to do with an entry of a target_modules list that fits no module: Python PEFT keeps silent.
enum class UnmatchedTargets : bool { kRefuse = false, kAllow = true };

namespace detail {

/// The last components of `names`, each once, in order: "q_proj, k_proj, …".
inline std::string last_components(std::span<const std::string> names) {
  constexpr std::size_t kMaxShown = 24;
  std::vector<std::string_view> seen;
  std::string text;
  for (const std::string& name : names) {
    const std::string_view last = std::string_view(name).substr(name.rfind('.') + 1);  // npos + 1 = 0
    if (std::find(seen.begin(), seen.end(), last) != seen.end()) continue;
    if (seen.size() == kMaxShown) return text + ", …";
    seen.push_back(last);
    if (!text.empty()) text += ", ";
    text += last;
  }
  return text.empty() ? "none" : text;
}

/// The names that "all-linear" leaves out: the language model's head; where there is none and the task is sequence
/// classification, the classifier.
inline bool is_output_head(const LoraConfig& config, std::span<const std::string> names, std::string_view output_head,
                           std::string_view name) {
  const auto is_lm_head = [&](std::string_view other) { return SelectorMatcher::entry_fits(output_head, other); };
  if (is_lm_head(name)) return true;
  if (config.task_type != "SEQ_CLS" || std::any_of(names.begin(), names.end(), is_lm_head)) return false;
  const bool has_score = std::find(names.begin(), names.end(), "score") != names.end();
  return name == (has_score ? "score" : "classifier");
}

}  // namespace detail

/// The modules among `names` (a model's linear layers, in order) that `config` adapts. "all-linear" leaves out the
/// module named `output_head`. Throws ConfigError where nothing matches, and, unless allowed, where an entry of a list
/// fits no module; the text names what the modules are called.
inline std::vector<TargetMatch> match_target_modules(const LoraConfig& config, std::span<const std::string> names,
                                                     UnmatchedTargets unmatched = UnmatchedTargets::kRefuse,
                                                     std::string_view output_head = "lm_head") {
  const TargetMatcher matcher(config);
  std::vector<TargetMatch> result;
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (!matcher.matches(names[i])) continue;
    if (config.target_modules.is_all_linear() && detail::is_output_head(config, names, output_head, names[i])) continue;
    result.push_back({i, matcher.rank(names[i]), matcher.scaling(names[i])});
  }
  const bool narrowed = !config.exclude_modules.is_empty() || !config.layers_to_transform.empty();
  if (result.empty()) {
    fail<ConfigError>("LoraConfig: target_modules = {} matches none of {} linear layers{}; their names end in: {}",
                      config.target_modules.text(), names.size(),
                      narrowed ? " that exclude_modules and layers_to_transform leave" : "",
                      detail::last_components(names));
  }
  if (unmatched == UnmatchedTargets::kRefuse) {
    for (const std::string& entry : config.target_modules.names()) {
      const bool fits = std::any_of(names.begin(), names.end(),
                                    [&](const std::string& name) { return SelectorMatcher::entry_fits(entry, name); });
      if (!fits) {
        fail<ConfigError>(
            "LoraConfig: target_modules names \"{}\", which is none of {} linear layers; their names end in: {}", entry,
            names.size(), detail::last_components(names));
      }
    }
  }
  return result;
}

PEFT_END_NAMESPACE
