#pragma once
/// A tokenizer's normalizer: Unicode's normal forms (utf8proc), SentencePiece's U+2581 for spaces, BERT's steps.

#include <utf8proc.h>

#include <cstdlib>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "hosts/bert_characters.hpp"
#include "hosts/tokenizer_spec.hpp"
#include "hosts/utf8.hpp"
#include "peft/error.hpp"

namespace peft_examples {

class Normalizer {
 public:
  Normalizer() = default;
  explicit Normalizer(std::vector<NormalizerStep> steps) : steps_(std::move(steps)) {}

  /// Bytes that are not UTF-8 stay as they are.
  std::string operator()(std::string_view text) const {
    std::string result(text);
    for (const NormalizerStep& step : steps_) result = apply(step, result);
    return result;
  }

 private:
  static std::string apply(const NormalizerStep& step, const std::string& text) {
    using Kind = NormalizerStep::Kind;
    switch (step.kind) {
      case Kind::kPrepend:
        return text.empty() ? text : step.content + text;
      case Kind::kReplace:
        return replace(text, step.pattern, step.content);
      case Kind::kNfc:
        return to_form(text, UTF8PROC_COMPOSE);
      case Kind::kNfd:
        return to_form(text, UTF8PROC_DECOMPOSE);
      case Kind::kNfkc:
        return to_form(text, UTF8PROC_COMPOSE | UTF8PROC_COMPAT);
      case Kind::kNfkd:
        return to_form(text, UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT);
      case Kind::kBert:
        return bert(step, text);
    }
    return text;
  }

  /// Cleaned, ideographs apart, accents gone, lower case, in this order. Bytes that are not UTF-8 go where text is cleaned.
  static std::string bert(const NormalizerStep& step, std::string_view text) {
    std::string result;
    for_each_valid_part(text, [&](std::string_view part, bool is_valid) {
      if (!is_valid) {
        if (!step.clean_text) result += part;
        return;
      }
      for_each_code_point(part, [&](std::int32_t c, std::string_view bytes) {
        if (step.clean_text && is_bert_control(c)) return;
        if (step.handle_chinese_chars && is_bert_ideograph(c)) {
          (result += ' ').append(bytes) += ' ';
        } else if (step.clean_text && is_bert_space(c)) {
          result += ' ';
        } else {
          result += bytes;
        }
      });
    });
    if (step.strip_accents) {
      result = mapped(to_form(result, UTF8PROC_DECOMPOSE), [](std::string& out, std::int32_t c, std::string_view bytes) {
        if (utf8proc_category(c) != UTF8PROC_CATEGORY_MN) out += bytes;
      });
    }
    if (!step.lowercase) return result;
    return mapped(result, [](std::string& out, std::int32_t c, std::string_view) {
      append_utf8(out, static_cast<char32_t>(utf8proc_tolower(c)));
      if (c == 0x130) append_utf8(out, 0x307);  // İ: the one letter that becomes two characters
    });
  }

  /// change(result, character, its bytes) for every character; bytes that are not UTF-8 stay.
  template <class Change>
  static std::string mapped(std::string_view text, Change&& change) {
    std::string result;
    for_each_valid_part(text, [&](std::string_view part, bool is_valid) {
      if (is_valid) {
        for_each_code_point(part, [&](std::int32_t c, std::string_view bytes) { change(result, c, bytes); });
      } else {
        result += part;
      }
    });
    return result;
  }

  static std::string replace(std::string_view text, std::string_view pattern, std::string_view content) {
    if (pattern.empty()) return std::string(text);
    std::string result;
    while (true) {
      const std::size_t found = text.find(pattern);
      result += text.substr(0, found);
      if (found == std::string_view::npos) return result;
      result += content;
      text.remove_prefix(found + pattern.size());
    }
  }

  static std::string to_form(std::string_view text, int options) {
    std::string result;
    for_each_valid_part(text, [&](std::string_view part, bool is_valid) {
      if (!is_valid) {
        result += part;
        return;
      }
      utf8proc_uint8_t* mapped = nullptr;
      const utf8proc_ssize_t size =
          utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(part.data()), static_cast<utf8proc_ssize_t>(part.size()),
                       &mapped, static_cast<utf8proc_option_t>(options | UTF8PROC_STABLE));
      if (size < 0) {
        peft::fail<peft::ConfigError>("tokenizer: normalizing {} bytes of text: {}", part.size(), utf8proc_errmsg(size));
      }
      result.append(reinterpret_cast<const char*>(mapped), static_cast<std::size_t>(size));
      std::free(mapped);
    });
    return result;
  }

  std::vector<NormalizerStep> steps_;
};

}  // namespace peft_examples
