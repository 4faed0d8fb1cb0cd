#pragma once
/// BERT's tokenizer (Devlin et al., 2019; WordPiece: Schuster and Nakajima, 2012): a word becomes the longest pieces of the
/// vocabulary from front to back, those behind the first with "##" before them; a word of which a part is no piece becomes
/// [UNK] as a whole. Ids are those of Hugging Face's tokenizers.

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "hosts/added_tokens.hpp"
#include "hosts/normalizer.hpp"
#include "hosts/pre_tokenizer.hpp"
#include "hosts/tokenizer_spec.hpp"
#include "peft/core/scalar.hpp"
#include "peft/io/text.hpp"

namespace peft_examples {

class WordPieceTokenizer {
 public:
  /// Throws ConfigError for a specification of another model, without an unknown token, or with an added token outside of
  /// the vocabulary.
  explicit WordPieceTokenizer(TokenizerSpec spec)
      : spec_(std::make_unique<const TokenizerSpec>(std::move(spec))),
        normalize_(spec_->normalizer),
        words_(spec_->pre_tokenizer),
        is_special_(spec_->tokens.size(), false) {
    if (spec_->model != TokenizerSpec::Model::kWordPiece) {
      peft::fail<peft::ConfigError>("tokenizer: byte pairs where WordPiece is expected: this model reads a BERT's tokens");
    }
    if (spec_->unk < 0) peft::fail<peft::ConfigError>("tokenizer: no unknown token; expected one, [UNK] mostly");
    for (std::size_t i = 0; i < spec_->tokens.size(); ++i) {
      if (!spec_->tokens[i].empty()) ids_.emplace(spec_->tokens[i], static_cast<std::int32_t>(i));
    }
    for (const AddedToken& token : spec_->added) {
      if (token.id < 0 || token.id >= size()) {
        peft::fail<peft::ConfigError>("tokenizer: the added token {} has the id {}, outside the vocabulary of {}",
                                      peft::quote_text(token.content), token.id, size());
      }
      (token.normalized ? normalized_ : raw_).add(token, token.normalized ? normalize_(token.content) : token.content);
      if (token.special) is_special_[static_cast<std::size_t>(token.id)] = true;
    }
  }

  const TokenizerSpec& spec() const noexcept { return *spec_; }
  peft::Index size() const noexcept { return static_cast<peft::Index>(spec_->tokens.size()); }
  /// The id of a token as the vocabulary writes it ("[CLS]"), or -1.
  std::int32_t id_of(std::string_view text) const {
    const auto found = ids_.find(text);
    return found != ids_.end() ? found->second : -1;
  }
  bool is_special(std::int32_t id) const noexcept { return id >= 0 && id < size() && is_special_[static_cast<std::size_t>(id)]; }

  /// The ids of `text`; nothing is added before or after. parse_special: "[MASK]" in the text is that token, otherwise its
  /// characters. Bytes that are not UTF-8 count as characters that no piece has.
  std::vector<std::int32_t> encode(std::string_view text, bool parse_special = true) const {
    std::vector<std::int32_t> ids;
    const auto push = [&ids](std::int32_t id) { ids.push_back(id); };
    raw_.cut(text, parse_special, [&](std::string_view part) {
      normalized_.cut(normalize_(part), parse_special, [&](std::string_view inner) {
        words_.split(std::string(inner), false, [&](std::string_view word) { encode_word(word, ids); });
      }, push);
    }, push);
    return ids;
  }
  /// The same between [CLS] and [SEP] (the template's ids), cut on its right to `max_length` ids in all; 0: not cut.
  std::vector<std::int32_t> encode_whole(std::string_view text, peft::Index max_length = 0, bool parse_special = true) const {
    std::vector<std::int32_t> ids = spec_->prefix;
    const std::vector<std::int32_t> inner = encode(text, parse_special);
    const std::size_t around = spec_->prefix.size() + spec_->suffix.size();
    std::size_t count = inner.size();
    if (max_length > 0) {
      const auto most = static_cast<std::size_t>(max_length);
      if (most < around + 1) {
        peft::fail<peft::ConfigError>("tokenizer: cutting a text to {} ids; expected at least {}: one between those that "
                                      "stand around it",
                                      max_length, around + 1);
      }
      count = std::min(count, most - around);
    }
    ids.insert(ids.end(), inner.begin(), inner.begin() + static_cast<std::ptrdiff_t>(count));
    ids.insert(ids.end(), spec_->suffix.begin(), spec_->suffix.end());
    return ids;
  }

  /// Words with one space between them, as close to a text as the ids come. Throws ConfigError for an id outside the
  /// vocabulary.
  std::string decode(std::span<const std::int32_t> ids, bool skip_special = false) const {
    std::string text;
    bool is_first = true;
    for (const std::int32_t id : ids) {
      if (skip_special && is_special(id)) continue;
      if (id < 0 || id >= size()) {
        peft::fail<peft::ConfigError>("tokenizer: id {} is outside the vocabulary of {}", id, size());
      }
      std::string token = spec_->tokens[static_cast<std::size_t>(id)];
      if (!is_first && token.starts_with(spec_->continuing_prefix)) {
        token.erase(0, spec_->continuing_prefix.size());
      } else if (!is_first) {
        token.insert(0, " ");
      }
      if (spec_->cleanup) clean_up(token);
      text += token;
      is_first = false;
    }
    return text;
  }

 private:
  struct TextHash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const noexcept { return std::hash<std::string_view>()(text); }
  };

  void encode_word(std::string_view word, std::vector<std::int32_t>& ids) const {
    std::vector<std::size_t> ends;  // of the characters
    for (std::size_t i = 0; i < word.size();) {
      i += std::max<std::size_t>(1, character_at(word.substr(i)));
      ends.push_back(i);
    }
    const std::size_t first_piece = ids.size();
    bool is_known = static_cast<peft::Index>(ends.size()) <= spec_->max_input_chars_per_word;
    std::string candidate;
    for (std::size_t begin = 0, character = 0; is_known && begin < word.size();) {
      std::int32_t found = -1;
      std::size_t last = ends.size();
      for (; last > character && found < 0; --last) {
        candidate = begin > 0 ? spec_->continuing_prefix : "";
        candidate += word.substr(begin, ends[last - 1] - begin);
        found = id_of(candidate);
      }
      is_known = found >= 0;
      if (!is_known) break;
      ids.push_back(found);
      character = last + 1;
      begin = ends[last];
    }
    if (is_known) return;
    ids.resize(first_piece);
    ids.push_back(spec_->unk);
  }

  /// Takes the spaces of English away that stand before punctuation and contractions, as there, token by token.
  static void clean_up(std::string& token) {
    static constexpr std::pair<std::string_view, std::string_view> kChanges[] = {
        {" .", "."}, {" ?", "?"}, {" !", "!"}, {" ,", ","}, {" ' ", "'"}, {" n't", "n't"},
        {" 'm", "'m"}, {" do not", " don't"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
    for (const auto& [from, to] : kChanges) {
      for (std::size_t i = 0; (i = token.find(from, i)) != std::string::npos; i += to.size()) token.replace(i, from.size(), to);
    }
  }

  std::unique_ptr<const TokenizerSpec> spec_;
  Normalizer normalize_;
  PreTokenizer words_;
  std::unordered_map<std::string, std::int32_t, TextHash, std::equal_to<>> ids_;
  std::vector<bool> is_special_;
  AddedTokens raw_, normalized_;
};

}  // namespace peft_examples
