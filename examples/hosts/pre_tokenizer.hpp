#pragma once
/// How a tokenizer cuts a normalized text into the words within which pieces merge: step by step, as Hugging Face's
/// pre-tokenizers do.

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "hosts/bert_characters.hpp"
#include "hosts/regex.hpp"
#include "hosts/tokenizer_spec.hpp"
#include "hosts/utf8.hpp"

namespace peft_examples {

/// GPT-2: contractions; letters, numbers or others with one space before them; white space, of which the last character
/// belongs to the word that follows.
inline constexpr std::string_view kGpt2Pattern =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

class PreTokenizer {
 public:
  PreTokenizer() = default;
  /// Throws ConfigError for a pattern that cannot be used, or a step that puts something before the text and is not the
  /// first.
  explicit PreTokenizer(const std::vector<PreTokenizerStep>& steps) {
    using Kind = PreTokenizerStep::Kind;
    for (const PreTokenizerStep& step : steps) {
      const bool puts_before = step.kind == Kind::kMetaspace || (step.kind == Kind::kByteLevel && step.add_prefix_space);
      if (puts_before && !steps_.empty()) {
        peft::fail<peft::ConfigError>("tokenizer: a pre-tokenizer that adds a space before the text stands behind others; "
                                      "expected it in front");
      }
      std::optional<Regex> regex;
      if (step.kind == Kind::kSplit) regex.emplace(step.pattern, step.is_literal);
      if (step.kind == Kind::kDigits) regex.emplace(step.individual_digits ? "\\p{N}" : "\\p{N}+");
      if (step.kind == Kind::kByteLevel && step.use_regex) regex.emplace(kGpt2Pattern);
      if (step.kind == Kind::kMetaspace && step.split) regex.emplace(kMetaspace, true);
      steps_.push_back({step, std::move(regex)});
    }
  }

  /// Calls run(word) for every word of `text`. `is_first`: it stands at the very front. Bytes that are not UTF-8 stand
  /// alone, a word each.
  template <class Run>
  void split(std::string text, bool is_first, Run&& run) const {
    if (!steps_.empty()) put_before(steps_.front().step, text, is_first);
    for_each_valid_part(text, [&](std::string_view part, bool is_valid) {
      if (is_valid) {
        split_from(0, part, run);
      } else {
        run(part);
      }
    });
  }

 private:
  struct Compiled {
    PreTokenizerStep step;
    std::optional<Regex> regex;
  };
  struct Piece {
    std::string_view text;
    bool is_match;
  };

  static void put_before(const PreTokenizerStep& step, std::string& text, bool is_first) {
    if (step.kind == PreTokenizerStep::Kind::kByteLevel) {
      if (step.add_prefix_space && !text.starts_with(' ')) text.insert(0, " ");
      return;
    }
    if (step.kind != PreTokenizerStep::Kind::kMetaspace || text.empty()) return;
    for (std::size_t i = 0; (i = text.find(' ', i)) != std::string::npos;) text.replace(i, 1, kMetaspace);
    const bool wanted = step.prepend == PreTokenizerStep::Prepend::kAlways ||
                        (step.prepend == PreTokenizerStep::Prepend::kFirst && is_first);
    if (wanted && !text.starts_with(kMetaspace)) text.insert(0, kMetaspace);
  }

  template <class Run>
  void split_from(std::size_t index, std::string_view text, Run&& run) const {
    if (text.empty()) return;
    const auto cuts = [&](std::size_t i) { return steps_[i].regex || steps_[i].step.kind == PreTokenizerStep::Kind::kBert; };
    while (index < steps_.size() && !cuts(index)) ++index;
    if (index == steps_.size()) return run(text);
    if (!steps_[index].regex) {
      return split_bert(text, [&](std::string_view word) { split_from(index + 1, word, run); });
    }
    std::vector<Piece> pieces;
    const PreTokenizerStep& step = steps_[index].step;
    steps_[index].regex->for_each_piece(text, [&](std::string_view piece, bool is_match) {
      pieces.push_back({piece, is_match != step.invert});
    });
    for (const Piece& piece : joined(std::move(pieces), behavior_of(step))) split_from(index + 1, piece.text, run);
  }

  /// White space goes, punctuation stands alone.
  template <class Run>
  static void split_bert(std::string_view text, Run&& run) {
    std::size_t begin = 0, at = 0;
    const auto end_word = [&] {
      if (at > begin) run(text.substr(begin, at - begin));
    };
    for_each_code_point(text, [&](std::int32_t c, std::string_view bytes) {
      if (is_bert_space(c) || is_bert_punctuation(c)) {
        end_word();
        if (!is_bert_space(c)) run(bytes);
        begin = at + bytes.size();
      }
      at += bytes.size();
    });
    end_word();
  }

  static PreTokenizerStep::Behavior behavior_of(const PreTokenizerStep& step) noexcept {
    // The space stands in front of its word.
    if (step.kind == PreTokenizerStep::Kind::kMetaspace) return PreTokenizerStep::Behavior::kMergedWithNext;
    return step.kind == PreTokenizerStep::Kind::kSplit ? step.behavior : PreTokenizerStep::Behavior::kIsolated;
  }

  /// What becomes of the matches; pieces stand one behind the other in one text.
  static std::vector<Piece> joined(std::vector<Piece> pieces, PreTokenizerStep::Behavior behavior) {
    using Behavior = PreTokenizerStep::Behavior;
    if (behavior == Behavior::kIsolated) return pieces;
    std::vector<Piece> result;
    const auto extend = [](Piece& left, const Piece& right) {
      left.text = {left.text.data(), left.text.size() + right.text.size()};
    };
    if (behavior == Behavior::kMergedWithNext) {
      // From the back: a match joins what follows it, unless that is a match that has joined nothing.
      bool next_is_match = false;
      for (std::size_t i = pieces.size(); i-- > 0;) {
        if (pieces[i].is_match && !next_is_match && !result.empty()) {
          extend(pieces[i], result.back());
          result.back() = pieces[i];
        } else {
          result.push_back(pieces[i]);
        }
        next_is_match = pieces[i].is_match;
      }
      return {result.rbegin(), result.rend()};
    }
    bool previous_is_match = false;
    for (const Piece& piece : pieces) {
      const bool joins = behavior == Behavior::kMergedWithPrevious ? piece.is_match && !previous_is_match
                         : behavior == Behavior::kContiguous       ? piece.is_match == previous_is_match
                                                                   : false;
      if (behavior == Behavior::kRemoved && piece.is_match) continue;
      if (joins && !result.empty()) {
        extend(result.back(), piece);
      } else {
        result.push_back(piece);
      }
      previous_is_match = piece.is_match;
    }
    return result;
  }

  std::vector<Compiled> steps_;
};

}  // namespace peft_examples
