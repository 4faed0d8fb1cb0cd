#pragma once
/// Text out of a stream of ids: a token may end within a character, whose bytes then wait for the rest.

#include <string>
#include <string_view>

#include "hosts/bpe_tokenizer.hpp"

namespace peft_examples {

class StreamDecoder {
 public:
  explicit StreamDecoder(const BpeTokenizer& tokenizer) noexcept
      : tokenizer_(tokenizer), strip_left_(tokenizer.spec().strip_left) {}

  /// The characters that `id` completes. Throws ConfigError for an id outside the vocabulary.
  std::string push(std::int32_t id) {
    waiting_ += tokenizer_.bytes_of(id);
    for (; strip_left_ > 0 && !waiting_.empty(); --strip_left_) {  // as decode() does at the front of a text
      if (waiting_.front() != ' ') {
        strip_left_ = 0;
        break;
      }
      waiting_.erase(0, 1);
    }
    const std::size_t whole = waiting_.size() - unfinished(waiting_);
    std::string text = waiting_.substr(0, whole);
    waiting_.erase(0, whole);
    return text;
  }
  /// What is left at the end: bytes of a character that never became whole.
  std::string finish() {
    std::string text;
    text.swap(waiting_);
    return text;
  }

 private:
  /// Bytes at the end that begin a UTF-8 character and do not complete it.
  static std::size_t unfinished(std::string_view text) noexcept {
    for (std::size_t back = 1; back <= 3 && back <= text.size(); ++back) {
      const auto byte = static_cast<unsigned char>(text[text.size() - back]);
      if ((byte & 0xC0) == 0x80) continue;  // within a character: its first byte is further in front
      const std::size_t length = byte >= 0xF0 && byte < 0xF8 ? 4 : byte >= 0xE0 ? 3 : byte >= 0xC0 ? 2 : 1;
      return byte < 0xF8 && length > back ? back : 0;
    }
    return 0;
  }

  const BpeTokenizer& tokenizer_;
  int strip_left_;
  std::string waiting_;
};

}  // namespace peft_examples
