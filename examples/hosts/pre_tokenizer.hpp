#pragma once
/// How a byte-level BPE tokenizer cuts text into words before merging: by a regular expression per model family, as the
/// GGUF's `tokenizer.ggml.pre` names it. PCRE2 matches, on characters and their Unicode properties.

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "peft/error.hpp"

namespace peft_examples {

/// Cuts text into words. Known names: smollm, gpt-2, llama-3, qwen2 (and llama.cpp's aliases of them).
class PreTokenizer {
 public:
  /// Throws ConfigError for another name.
  explicit PreTokenizer(std::string_view name) {
    // GPT-2: contractions; letters, numbers or others with one space before them; white space, of which the last
    // character belongs to the word that follows.
    const char* gpt2 =
        "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
    const char* pattern = nullptr;
    if (name == "gpt-2" || name == "gpt2") {
      pattern = gpt2;
    } else if (name == "smollm") {
      pattern = gpt2;
      single_digits_ = true;
    } else if (name == "llama-3" || name == "llama3" || name == "llama-bpe") {
      pattern =
          "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
          "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
    } else if (name == "qwen2") {
      pattern =
          "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
          "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
    } else {
      peft::fail<peft::ConfigError>(
          "tokenizer: the pre-tokenizer \"{}\" is not known; known are smollm, gpt-2, llama-3 and qwen2", name);
    }
    code_ = compile(pattern);
    if (single_digits_) digit_ = compile("\\p{N}");
  }

  /// The words of `text`, which together are the text. Bytes that are not UTF-8 stand alone, a word each.
  std::vector<std::string_view> split(std::string_view text) const {
    std::vector<std::string_view> words;
    std::size_t begin = 0;
    while (begin < text.size()) {
      const std::size_t valid = valid_prefix(text.substr(begin));
      if (valid > 0) split_valid(text.substr(begin, valid), words);
      begin += valid;
      if (begin < text.size()) words.push_back(text.substr(begin++, 1));
    }
    return words;
  }

 private:
  struct Free {
    void operator()(pcre2_code* code) const noexcept { pcre2_code_free(code); }
    void operator()(pcre2_match_data* data) const noexcept { pcre2_match_data_free(data); }
  };
  using Code = std::unique_ptr<pcre2_code, Free>;

  static Code compile(const char* pattern) {
    int error = 0;
    PCRE2_SIZE place = 0;
    Code code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern), PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP, &error,
                            &place, nullptr));
    if (code == nullptr) {
      peft::fail<peft::ConfigError>("tokenizer: PCRE2 refuses the pattern {} at {} (error {})", pattern, place, error);
    }
    pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);  // where it cannot, matching is interpreted
    return code;
  }

  /// Bytes at the start of `text` that are well-formed UTF-8.
  static std::size_t valid_prefix(std::string_view text) noexcept {
    std::size_t i = 0;
    while (i < text.size()) {
      const auto c = static_cast<unsigned char>(text[i]);
      const std::size_t length = c < 0x80 ? 1 : c >= 0xC2 && c < 0xE0 ? 2 : c >= 0xE0 && c < 0xF0 ? 3
                                 : c >= 0xF0 && c < 0xF5 ? 4 : 0;
      if (length == 0 || i + length > text.size()) return i;
      for (std::size_t j = 1; j < length; ++j) {
        if ((static_cast<unsigned char>(text[i + j]) & 0xC0) != 0x80) return i;
      }
      const auto second = length > 1 ? static_cast<unsigned char>(text[i + 1]) : 0u;
      if ((c == 0xE0 && second < 0xA0) || (c == 0xED && second > 0x9F) || (c == 0xF0 && second < 0x90) ||
          (c == 0xF4 && second > 0x8F)) {
        return i;
      }
      i += length;
    }
    return i;
  }

  /// Calls run(piece, matched) for the matches and for what lies between them.
  template <class Run>
  static void for_each_match(const Code& code, std::string_view text, Run&& run) {
    const std::unique_ptr<pcre2_match_data, Free> data(pcre2_match_data_create_from_pattern(code.get(), nullptr));
    std::size_t begin = 0;
    while (begin < text.size()) {
      const int found = pcre2_match(code.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), begin,
                                    PCRE2_NO_UTF_CHECK, data.get(), nullptr);
      if (found < 0) break;
      const PCRE2_SIZE* place = pcre2_get_ovector_pointer(data.get());
      if (place[1] <= place[0]) break;
      if (place[0] > begin) run(text.substr(begin, place[0] - begin), false);
      run(text.substr(place[0], place[1] - place[0]), true);
      begin = place[1];
    }
    if (begin < text.size()) run(text.substr(begin), false);
  }

  void split_valid(std::string_view text, std::vector<std::string_view>& words) const {
    const auto by_pattern = [&](std::string_view part) {
      for_each_match(code_, part, [&](std::string_view word, bool) { words.push_back(word); });
    };
    if (!single_digits_) return by_pattern(text);
    for_each_match(digit_, text, [&](std::string_view part, bool is_digit) {
      if (is_digit) {
        words.push_back(part);
      } else {
        by_pattern(part);
      }
    });
  }

  Code code_, digit_;
  bool single_digits_ = false;
};

}  // namespace peft_examples
