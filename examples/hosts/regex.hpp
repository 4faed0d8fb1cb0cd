#pragma once
/// A regular expression as Hugging Face's tokenizers writes them (Oniguruma's syntax), matched by PCRE2 on characters and
/// their Unicode properties.

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <memory>
#include <string>
#include <string_view>

#include "peft/error.hpp"
#include "peft/io/text.hpp"

namespace peft_examples {

class Regex {
 public:
  /// is_literal: the pattern stands for itself. Throws ConfigError for what PCRE2 refuses.
  explicit Regex(std::string_view pattern, bool is_literal = false) {
    // Oniguruma's ^ and $ are those of lines, always.
    const std::uint32_t options = PCRE2_UTF | PCRE2_UCP | (is_literal ? PCRE2_LITERAL : PCRE2_MULTILINE);
    const std::uint32_t allowed = is_literal ? PCRE2_UTF | PCRE2_LITERAL : options;
    const std::string source = is_literal ? std::string(pattern) : with_unicode_spaces(pattern);
    int error = 0;
    PCRE2_SIZE place = 0;
    code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(source.data()), source.size(), allowed, &error, &place, nullptr));
    if (code_ == nullptr) {
      PCRE2_UCHAR text[160] = {};
      pcre2_get_error_message(error, text, sizeof(text));
      peft::fail<peft::ConfigError>("tokenizer: the pattern {} cannot be used: {} at {}", peft::quote_text(pattern),
                                    reinterpret_cast<const char*>(text), place);
    }
    pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);  // where it cannot, matching is interpreted
  }

  /// Calls run(piece, is_match) for the matches in `text`, which is UTF-8, and for what lies between them. Throws
  /// ConfigError where PCRE2 gives up.
  template <class Run>
  void for_each_piece(std::string_view text, Run&& run) const {
    const std::unique_ptr<pcre2_match_data, Free> data(pcre2_match_data_create_from_pattern(code_.get(), nullptr));
    std::size_t begin = 0, from = 0;
    while (from < text.size()) {
      const int found = pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                                    PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY, data.get(), nullptr);
      if (found == PCRE2_ERROR_NOMATCH) break;
      if (found < 0) {
        PCRE2_UCHAR message[160] = {};
        pcre2_get_error_message(found, message, sizeof(message));
        peft::fail<peft::ConfigError>("tokenizer: cutting a text of {} bytes into words: {}", text.size(),
                                      reinterpret_cast<const char*>(message));
      }
      const PCRE2_SIZE* place = pcre2_get_ovector_pointer(data.get());
      if (place[0] > begin) run(text.substr(begin, place[0] - begin), false);
      run(text.substr(place[0], place[1] - place[0]), true);
      begin = from = place[1];
    }
    if (begin < text.size()) run(text.substr(begin), false);
  }

 private:
  struct Free {
    void operator()(pcre2_code* code) const noexcept { pcre2_code_free(code); }
    void operator()(pcre2_match_data* data) const noexcept { pcre2_match_data_free(data); }
  };

  /// PCRE2's \s and \S also count U+180E as a space, which Unicode stopped doing; the property does not.
  static std::string with_unicode_spaces(std::string_view pattern) {
    std::string result;
    bool in_class = false;
    for (std::size_t i = 0; i < pattern.size(); ++i) {
      const char c = pattern[i];
      if (c == '\\' && i + 1 < pattern.size()) {
        const char next = pattern[++i];
        constexpr std::string_view kSpaces = "\\t-\\r\\x{85}\\p{Z}";
        if (next == 's') {
          result += in_class ? std::string(kSpaces) : "[" + std::string(kSpaces) + "]";
        } else if (next == 'S' && !in_class) {
          result += "[^" + std::string(kSpaces) + "]";
        } else {
          result += c;
          result += next;
        }
        continue;
      }
      if (c == '[') in_class = true;
      if (c == ']') in_class = false;
      result += c;
    }
    return result;
  }

  std::unique_ptr<pcre2_code, Free> code_;
};

}  // namespace peft_examples
