#pragma once
/// The tokenizer that a GGUF carries: `gpt2`, byte-level merges in a list, and `llama`, SentencePiece's pieces with scores.

#include <fmt/format.h>

#include <cmath>
#include <string>
#include <string_view>
#include <vector>

#include "hosts/bpe_tokenizer.hpp"
#include "hosts/tokenizer_presets.hpp"
#include "peft/io/gguf.hpp"

namespace peft_examples {

/// What a GGUF says a token is (`tokenizer.ggml.token_type`).
enum class GgufTokenType : std::int32_t { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };

namespace detail {

inline void read_gpt2(const peft::GgufFile& file, TokenizerSpec& spec) {
  const std::string name(file.get_or<std::string_view>("tokenizer.ggml.pre", "gpt-2"));
  const auto preset = tokenizer_preset(name);
  if (!preset) {
    peft::fail<peft::FormatError>("loading a tokenizer: the pre-tokenizer {} (tokenizer.ggml.pre) is not known; known are {}",
                                  peft::quote_text(name), fmt::join(kPresetNames, ", "));
  }
  spec.normalizer = preset->normalizer;
  spec.pre_tokenizer = preset->pre_tokenizer;
  spec.ignore_merges = preset->ignore_merges;
  for (const std::string_view merge : file.strings("tokenizer.ggml.merges")) {
    const std::size_t space = merge.find(' ', 1);
    if (space == std::string_view::npos) {
      peft::fail<peft::FormatError>("loading a tokenizer: merge {} is {}; expected two pieces with a space between",
                                    spec.merges.size(), peft::quote_text(merge));
    }
    spec.merges.emplace_back(merge.substr(0, space), merge.substr(space + 1));
  }
}

inline void read_sentencepiece(const peft::GgufFile& file, TokenizerSpec& spec, const std::vector<GgufTokenType>& types) {
  spec.byte_level = false;
  spec.byte_fallback = true;
  spec.fuse_unk = true;
  const auto scores = file.array<float>("tokenizer.ggml.scores");
  if (scores.size() != static_cast<peft::Index>(spec.tokens.size())) {
    peft::fail<peft::FormatError>("loading a tokenizer: {} scores for {} tokens", scores.size(), spec.tokens.size());
  }
  for (peft::Index i = 0; i < scores.size(); ++i) {
    if (std::isnan(scores[i])) peft::fail<peft::FormatError>("loading a tokenizer: the score of token {} is NaN", i);
    spec.scores.push_back(scores[i]);
    const GgufTokenType type = types[static_cast<std::size_t>(i)];
    spec.is_piece.push_back(type == GgufTokenType::kNormal);
  }
  if (file.get_or<bool>("tokenizer.ggml.add_space_prefix", true)) {
    spec.normalizer.push_back({NormalizerStep::Kind::kPrepend, "", std::string(kMetaspace)});
    spec.strip_left = 1;
  }
  spec.normalizer.push_back({NormalizerStep::Kind::kReplace, " ", std::string(kMetaspace)});
}

}  // namespace detail

/// Throws FormatError for a file whose tokenizer is missing or of another kind.
inline TokenizerSpec read_tokenizer(const peft::GgufFile& file) {
  const auto model = file.get<std::string_view>("tokenizer.ggml.model");
  if (model != "gpt2" && model != "llama") {
    peft::fail<peft::FormatError>("loading a tokenizer: its model is {}; expected \"gpt2\", byte-level BPE, or \"llama\", "
                                  "SentencePiece with scores",
                                  peft::quote_text(model));
  }
  TokenizerSpec spec;
  for (const std::string_view text : file.strings("tokenizer.ggml.tokens")) spec.tokens.emplace_back(text);
  std::vector<GgufTokenType> types(spec.tokens.size(), GgufTokenType::kNormal);
  if (file.has("tokenizer.ggml.token_type")) {
    const auto stored = file.array<std::int32_t>("tokenizer.ggml.token_type");
    if (stored.size() != static_cast<peft::Index>(types.size())) {
      peft::fail<peft::FormatError>("loading a tokenizer: {} token types for {} tokens", stored.size(), types.size());
    }
    for (peft::Index i = 0; i < stored.size(); ++i) types[static_cast<std::size_t>(i)] = static_cast<GgufTokenType>(stored[i]);
  }
  const auto id = [&](const char* key) {
    const auto value = file.get_or<std::int32_t>(std::string("tokenizer.ggml.") + key, -1);
    if (value >= static_cast<std::int32_t>(spec.tokens.size())) {
      peft::fail<peft::FormatError>("loading a tokenizer: {} is {}, outside the vocabulary of {}", key, value, spec.tokens.size());
    }
    return value;
  };
  spec.bos = id("bos_token_id");
  spec.eos = id("eos_token_id");
  spec.pad = id("padding_token_id");
  const std::int32_t unknown = id("unknown_token_id");
  for (std::size_t i = 0; i < types.size(); ++i) {
    const bool special = types[i] == GgufTokenType::kControl || types[i] == GgufTokenType::kUnknown;
    if (!special && types[i] != GgufTokenType::kUserDefined) continue;
    spec.added.push_back({static_cast<std::int32_t>(i), spec.tokens[i], special});
  }
  if (model == "gpt2") {
    detail::read_gpt2(file, spec);
  } else {
    spec.unk = unknown;
    detail::read_sentencepiece(file, spec, types);
  }
  const bool adds_bos = model == "llama" || spec.ignore_merges;  // llama.cpp's, where the file does not say
  if (file.get_or<bool>("tokenizer.ggml.add_bos_token", adds_bos) && spec.bos >= 0) spec.prefix.push_back(spec.bos);
  if (file.get_or<bool>("tokenizer.ggml.add_eos_token", false) && spec.eos >= 0) spec.suffix.push_back(spec.eos);
  for (const char* key : {"eos_token_id", "eot_token_id", "eom_token_id"}) {
    if (const std::int32_t stop = id(key); stop >= 0) spec.stops.push_back(stop);
  }
  spec.chat_template = std::string(file.get_or<std::string_view>("tokenizer.chat_template", ""));
  return spec;
}

}  // namespace peft_examples
