#pragma once
/// Byte-level byte-pair encoding (Sennrich et al., 2016; GPT-2): text is cut into words, a word's bytes are written as
/// printable characters, and neighbouring pieces merge by rank until no merge applies. Every text has an encoding, and
/// decode(encode(text)) is the text, bytes that are not UTF-8 included.

#include <algorithm>
#include <array>
#include <cstdint>
#include <queue>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "hosts/pre_tokenizer.hpp"
#include "peft/core/scalar.hpp"

namespace peft_examples {

/// A tokenizer as a model file holds it.
struct BpeVocabulary {
  std::vector<std::string> tokens;         ///< by id, in GPT-2's printable characters
  std::vector<std::string> merges;         ///< "left right", the first has the highest priority
  std::vector<std::int32_t> token_types;   ///< llama.cpp's: 3 control, 4 user-defined; empty: none are special
  std::string pre_tokenizer;
  std::int32_t bos = -1;
  std::int32_t eos = -1;
};

class BpeTokenizer {
 public:
  /// Throws ConfigError for an unknown pre-tokenizer, a merge of unknown pieces, or a byte that no token stands for.
  explicit BpeTokenizer(BpeVocabulary vocabulary) : vocabulary_(std::move(vocabulary)), words_(vocabulary_.pre_tokenizer) {
    for (std::size_t i = 0; i < vocabulary_.tokens.size(); ++i) ids_.emplace(vocabulary_.tokens[i], static_cast<std::int32_t>(i));
    make_byte_table();
    for (std::size_t rank = 0; rank < vocabulary_.merges.size(); ++rank) add_merge(vocabulary_.merges[rank], rank);
    for (std::size_t i = 0; i < vocabulary_.token_types.size() && i < vocabulary_.tokens.size(); ++i) {
      if (is_special(static_cast<std::int32_t>(i))) special_.push_back(static_cast<std::int32_t>(i));
    }
    std::sort(special_.begin(), special_.end(), [&](std::int32_t a, std::int32_t b) {  // the longest match wins
      return token(a).size() != token(b).size() ? token(a).size() > token(b).size() : a < b;
    });
  }

  peft::Index size() const noexcept { return static_cast<peft::Index>(vocabulary_.tokens.size()); }
  std::int32_t bos() const noexcept { return vocabulary_.bos; }
  std::int32_t eos() const noexcept { return vocabulary_.eos; }
  /// The id of a token as the vocabulary writes it ("<|im_end|>"), or -1.
  std::int32_t id_of(std::string_view text) const {
    const auto found = ids_.find(std::string(text));
    return found != ids_.end() ? found->second : -1;
  }
  bool is_special(std::int32_t id) const noexcept {
    const auto at = static_cast<std::size_t>(id);
    return id >= 0 && at < vocabulary_.token_types.size() &&
           (vocabulary_.token_types[at] == 3 || vocabulary_.token_types[at] == 4);
  }

  /// The ids of `text`; nothing is added before or after. parse_special: "<|im_start|>" in the text is that token,
  /// otherwise its characters.
  std::vector<std::int32_t> encode(std::string_view text, bool parse_special = true) const {
    std::vector<std::int32_t> ids;
    std::size_t begin = 0;
    for (std::size_t i = 0; parse_special && i < text.size();) {
      std::int32_t found = -1;
      for (const std::int32_t id : special_) {
        if (text.substr(i, token(id).size()) == token(id)) {
          found = id;
          break;
        }
      }
      if (found < 0) {
        ++i;
        continue;
      }
      encode_plain(text.substr(begin, i - begin), ids);
      ids.push_back(found);
      i += token(found).size();
      begin = i;
    }
    encode_plain(text.substr(begin), ids);
    return ids;
  }

  /// The bytes that one id stands for; a special token's own text. Throws ConfigError for an id outside the vocabulary.
  std::string bytes_of(std::int32_t id) const {
    if (id < 0 || id >= size()) {
      peft::fail<peft::ConfigError>("tokenizer: id {} is outside the vocabulary of {}", id, size());
    }
    const std::string& text = token(id);
    if (is_special(id)) return text;
    std::string bytes;
    for (std::size_t i = 0; i < text.size();) {
      const std::size_t length = character_length(text[i]);
      const auto found = byte_of_.find(text.substr(i, length));
      if (found != byte_of_.end()) {
        bytes += static_cast<char>(found->second);
      } else {
        bytes += text.substr(i, length);
      }
      i += length;
    }
    return bytes;
  }

  /// The text of `ids`.
  std::string decode(std::span<const std::int32_t> ids, bool skip_special = false) const {
    std::string text;
    for (const std::int32_t id : ids) {
      if (!skip_special || !is_special(id)) text += bytes_of(id);
    }
    return text;
  }

 private:
  const std::string& token(std::int32_t id) const noexcept { return vocabulary_.tokens[static_cast<std::size_t>(id)]; }

  static std::size_t character_length(char first) noexcept {
    const auto c = static_cast<unsigned char>(first);
    return c < 0x80 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
  }

  /// GPT-2's printable stand-ins: a visible Latin-1 character is itself, the others follow from U+0100 on.
  void make_byte_table() {
    unsigned next = 0x100;
    for (unsigned byte = 0; byte < 256; ++byte) {
      const bool visible = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
      const unsigned character = visible ? byte : next++;
      std::string utf8;
      if (character < 0x80) {
        utf8 += static_cast<char>(character);
      } else {
        utf8 += static_cast<char>(0xC0 | (character >> 6));
        utf8 += static_cast<char>(0x80 | (character & 0x3F));
      }
      byte_of_.emplace(utf8, static_cast<std::uint8_t>(byte));
      const auto found = ids_.find(utf8);
      byte_ids_[byte] = found != ids_.end() ? found->second : -1;
    }
  }

  void add_merge(const std::string& merge, std::size_t rank) {
    const std::size_t space = merge.find(' ', 1);
    const auto find = [&](const std::string& piece) {
      const auto found = ids_.find(piece);
      if (found == ids_.end()) {
        peft::fail<peft::ConfigError>("tokenizer: merge {} (\"{}\") has the piece \"{}\", which is no token", rank, merge,
                                      piece);
      }
      return found->second;
    };
    if (space == std::string::npos) {
      peft::fail<peft::ConfigError>("tokenizer: merge {} is \"{}\"; expected two pieces with a space between", rank, merge);
    }
    const std::string left = merge.substr(0, space), right = merge.substr(space + 1);
    merges_.emplace(pair_key(find(left), find(right)), Merge{static_cast<std::int32_t>(rank), find(left + right)});
  }

  static std::uint64_t pair_key(std::int32_t left, std::int32_t right) noexcept {
    return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 | static_cast<std::uint32_t>(right);
  }

  void encode_plain(std::string_view text, std::vector<std::int32_t>& ids) const {
    for (const std::string_view word : words_.split(text)) encode_word(word, ids);
  }

  /// Merges by rank, the leftmost of equals first: a heap of candidates over a linked list, O(n log n).
  void encode_word(std::string_view word, std::vector<std::int32_t>& ids) const {
    struct Piece {
      std::int32_t id, previous, next;
    };
    struct Candidate {
      std::int32_t rank, left;
      std::uint64_t key;
      std::int32_t merged;
      bool operator<(const Candidate& o) const noexcept { return rank != o.rank ? rank > o.rank : left > o.left; }
    };
    std::vector<Piece> pieces;
    const auto count = static_cast<std::int32_t>(word.size());
    for (std::int32_t i = 0; i < count; ++i) {
      const std::int32_t id = byte_ids_[static_cast<unsigned char>(word[static_cast<std::size_t>(i)])];
      if (id < 0) {
        peft::fail<peft::ConfigError>("tokenizer: no token stands for the byte {:#04x}",
                                      static_cast<unsigned char>(word[static_cast<std::size_t>(i)]));
      }
      pieces.push_back({id, i - 1, i + 1 < count ? i + 1 : -1});
    }
    std::priority_queue<Candidate> heap;
    const auto at = [&](std::int32_t i) -> Piece& { return pieces[static_cast<std::size_t>(i)]; };
    const auto offer = [&](std::int32_t left) {
      if (left < 0 || at(left).next < 0) return;
      const std::uint64_t key = pair_key(at(left).id, at(at(left).next).id);
      const auto found = merges_.find(key);
      if (found != merges_.end()) heap.push({found->second.rank, left, key, found->second.id});
    };
    for (std::int32_t i = 0; i + 1 < count; ++i) offer(i);
    while (!heap.empty()) {
      const Candidate best = heap.top();
      heap.pop();
      Piece& left = at(best.left);
      if (left.id < 0 || left.next < 0 || pair_key(left.id, at(left.next).id) != best.key) continue;  // out of date
      Piece& right = at(left.next);
      right.id = -1;
      left.id = best.merged;
      left.next = right.next;
      if (left.next >= 0) at(left.next).previous = best.left;
      offer(left.previous);
      offer(best.left);
    }
    for (std::int32_t i = 0; i >= 0 && i < count; i = at(i).next) ids.push_back(at(i).id);
  }

  struct Merge {
    std::int32_t rank, id;
  };

  BpeVocabulary vocabulary_;
  PreTokenizer words_;
  std::unordered_map<std::string, std::int32_t> ids_;
  std::unordered_map<std::string, std::uint8_t> byte_of_;
  std::array<std::int32_t, 256> byte_ids_{};
  std::unordered_map<std::uint64_t, Merge> merges_;
  std::vector<std::int32_t> special_;
};

}  // namespace peft_examples
