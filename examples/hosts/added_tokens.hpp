#pragma once
/// Finds a tokenizer's added tokens in a text: at each place the longest that stands there.

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "hosts/tokenizer_spec.hpp"
#include "hosts/utf8.hpp"

namespace peft_examples {

class AddedTokens {
 public:
  void add(const AddedToken& token, std::string content) {
    if (content.empty()) return;
    auto& bucket = buckets_[static_cast<unsigned char>(content.front())];
    bucket.push_back({std::move(content), token});
    std::stable_sort(bucket.begin(), bucket.end(), [](const Entry& a, const Entry& b) { return a.text.size() > b.text.size(); });
  }

  /// Calls text(part) for what lies between the tokens and token(id) for each of them, from front to back. with_special:
  /// special ones count; otherwise they are text.
  template <class OnText, class OnToken>
  void cut(std::string_view whole, bool with_special, OnText&& text, OnToken&& token) const {
    std::size_t begin = 0;  // of the text that is not handed on yet
    for (std::size_t i = 0; i < whole.size();) {
      const Entry* found = find(whole.substr(i), with_special);
      if (found == nullptr) {
        ++i;
        continue;
      }
      std::size_t from = i, to = i + found->text.size();
      if (found->token.lstrip) from = begin + without_spaces_behind(whole.substr(begin, i - begin));
      if (found->token.rstrip) to += spaces_in_front(whole.substr(to));
      if (from > begin) text(whole.substr(begin, from - begin));
      token(found->token.id);
      begin = i = to;
    }
    if (begin < whole.size()) text(whole.substr(begin));
  }

 private:
  struct Entry {
    std::string text;
    AddedToken token;
  };

  const Entry* find(std::string_view text, bool with_special) const noexcept {
    for (const Entry& entry : buckets_[static_cast<unsigned char>(text.front())]) {
      if (text.starts_with(entry.text) && (with_special || !entry.token.special)) return &entry;
    }
    return nullptr;
  }

  /// Bytes of a white space character at the front; 0 where there is none.
  static std::size_t space_at(std::string_view text) noexcept {
    if (text.empty()) return 0;
    if (text[0] == ' ' || (text[0] >= '\t' && text[0] <= '\r')) return 1;
    for (const std::string_view space : {"\xC2\x85", "\xC2\xA0", "\xE1\x9A\x80", "\xE2\x80\xA8", "\xE2\x80\xA9",
                                         "\xE2\x80\xAF", "\xE2\x81\x9F", "\xE3\x80\x80"}) {
      if (text.starts_with(space)) return space.size();
    }
    const bool en_quad_to_hair_space = text.size() >= 3 && text.starts_with("\xE2\x80") &&
                                       static_cast<unsigned char>(text[2]) >= 0x80 && static_cast<unsigned char>(text[2]) <= 0x8A;
    return en_quad_to_hair_space ? 3 : 0;
  }
  static std::size_t spaces_in_front(std::string_view text) noexcept {
    std::size_t i = 0;
    while (const std::size_t length = space_at(text.substr(i))) i += length;
    return i;
  }
  static std::size_t without_spaces_behind(std::string_view text) noexcept {
    std::size_t end = 0;
    for (std::size_t i = 0; i < text.size();) {
      const std::size_t space = space_at(text.substr(i));
      i += space > 0 ? space : std::max<std::size_t>(1, character_at(text.substr(i)));
      if (space == 0) end = i;
    }
    return end;
  }

  std::array<std::vector<Entry>, 256> buckets_;
};

}  // namespace peft_examples
