#pragma once
/// A byte-pair tokenizer, byte-level (GPT-2, Llama 3, Qwen) or of characters with U+2581 for spaces (Llama 2, Mistral).
/// Ids are those of Hugging Face's tokenizers. Text that is not UTF-8, which those refuse, keeps its bytes: as byte tokens
/// where the vocabulary has them.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "hosts/added_tokens.hpp"
#include "hosts/bpe_model.hpp"
#include "hosts/normalizer.hpp"
#include "hosts/pre_tokenizer.hpp"
#include "hosts/tokenizer_spec.hpp"
#include "peft/core/scalar.hpp"

namespace peft_examples {

class BpeTokenizer {
 public:
  /// Throws ConfigError for a pattern that cannot be used or a merge of unknown pieces.
  explicit BpeTokenizer(TokenizerSpec spec)
      : spec_(std::make_unique<const TokenizerSpec>(std::move(spec))),
        normalize_(spec_->normalizer),
        words_(spec_->pre_tokenizer),
        model_(*spec_),
        kinds_(spec_->tokens.size(), Kind::kPiece) {
    if (spec_->model != TokenizerSpec::Model::kBytePair) {
      peft::fail<peft::ConfigError>("tokenizer: WordPiece; expected byte pairs, which a Llama reads. A BERT reads WordPiece and sorts "
                                    "texts: --task classify");
    }
    for (const AddedToken& token : spec_->added) {
      if (token.id < 0 || token.id >= size()) {
        peft::fail<peft::ConfigError>("tokenizer: the added token {} has the id {}, outside the vocabulary of {}",
                                      peft::quote_text(token.content), token.id, size());
      }
      (token.normalized ? normalized_ : raw_).add(token, token.normalized ? normalize_(token.content) : token.content);
      kinds_[static_cast<std::size_t>(token.id)] = token.special ? Kind::kSpecial : Kind::kAdded;
    }
  }

  const TokenizerSpec& spec() const noexcept { return *spec_; }
  peft::Index size() const noexcept { return static_cast<peft::Index>(spec_->tokens.size()); }
  std::int32_t bos() const noexcept { return spec_->bos; }
  std::int32_t eos() const noexcept { return spec_->eos; }
  /// The id of a token as the vocabulary writes it ("<|im_end|>"), or -1.
  std::int32_t id_of(std::string_view text) const { return model_.find(text); }
  bool is_special(std::int32_t id) const noexcept {
    return id >= 0 && id < size() && kinds_[static_cast<std::size_t>(id)] == Kind::kSpecial;
  }

  /// The ids of `text`; nothing is added before or after. parse_special: "<|im_start|>" in the text is that token,
  /// otherwise its characters.
  std::vector<std::int32_t> encode(std::string_view text, bool parse_special = true) const {
    std::vector<std::int32_t> ids;
    const auto push = [&ids](std::int32_t id) { ids.push_back(id); };
    raw_.cut(text, parse_special, [&](std::string_view part) {
      bool is_first = part.data() == text.data();
      normalized_.cut(normalize_(part), parse_special, [&](std::string_view inner) {
        words_.split(std::string(inner), std::exchange(is_first, false),
                     [&](std::string_view word) { model_.encode(word, ids); });
      }, [&](std::int32_t id) {
        is_first = false;
        push(id);
      });
    }, push);
    return ids;
  }
  /// The same as a text of its own: between the ids that the tokenizer puts around one (a beginning of text, mostly).
  std::vector<std::int32_t> encode_whole(std::string_view text, bool parse_special = true) const {
    std::vector<std::int32_t> ids = spec_->prefix;
    const std::vector<std::int32_t> inner = encode(text, parse_special);
    ids.insert(ids.end(), inner.begin(), inner.end());
    ids.insert(ids.end(), spec_->suffix.begin(), spec_->suffix.end());
    return ids;
  }

  /// The bytes that one id stands for; an added token's own text. Throws ConfigError for an id outside the vocabulary.
  std::string bytes_of(std::int32_t id) const {
    if (id < 0 || id >= size()) {
      peft::fail<peft::ConfigError>("tokenizer: id {} is outside the vocabulary of {}", id, size());
    }
    const auto at = static_cast<std::size_t>(id);
    const std::string& token = spec_->tokens[at];
    if (spec_->byte_level) return kinds_[at] == Kind::kPiece ? ByteCharacters::get().bytes_of(token) : token;
    if (const auto byte = byte_token(token); byte && kinds_[at] == Kind::kPiece) return {static_cast<char>(*byte)};
    std::string text = token;
    for (std::size_t i = 0; (i = text.find(kMetaspace, i)) != std::string::npos; ++i) text.replace(i, kMetaspace.size(), " ");
    return text;
  }

  /// The text of `ids`. A whole text's leading space is left out where the tokenizer put it there. Bytes that are not
  /// UTF-8 come as they are.
  std::string decode(std::span<const std::int32_t> ids, bool skip_special = false) const {
    std::string text;
    for (const std::int32_t id : ids) {
      if (!skip_special || !is_special(id)) text += bytes_of(id);
    }
    std::size_t strip = 0;
    while (strip < text.size() && strip < static_cast<std::size_t>(spec_->strip_left) && text[strip] == ' ') ++strip;
    return text.substr(strip);
  }

 private:
  enum class Kind : std::uint8_t { kPiece, kAdded, kSpecial };

  std::unique_ptr<const TokenizerSpec> spec_;  // the model refers to it
  Normalizer normalize_;
  PreTokenizer words_;
  BpeModel model_;
  std::vector<Kind> kinds_;
  AddedTokens raw_, normalized_;
};

}  // namespace peft_examples
