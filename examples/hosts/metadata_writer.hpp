#pragma once
/// A model's hyper-parameters and tokenizer as a GGUF's metadata, in llama.cpp's conventions.

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "hosts/llama_config.hpp"
#include "hosts/tokenizer_gguf.hpp"
#include "peft/io/gguf_metadata.hpp"

namespace peft_examples {

/// Hyper-parameters. A window below the context is the context, since llama.cpp's llama has no window. Throws ConfigError
/// for what a GGUF cannot say.
inline void put_hyperparameters(const LlamaConfig& c, const std::string& name, peft::GgufMetadata& out) {
  const std::string architecture = c.model_type == "mistral" ? "llama" : c.model_type;
  const auto put = [&](const char* key, Index value) { out.set(architecture + "." + key, static_cast<std::uint32_t>(value)); };
  out.set("general.architecture", architecture);
  out.set("general.type", "model");
  out.set("general.name", name);
  put("block_count", c.num_hidden_layers);
  put("context_length", c.context());
  put("embedding_length", c.hidden_size);
  put("feed_forward_length", c.intermediate_size);
  put("attention.head_count", c.num_attention_heads);
  put("attention.head_count_kv", c.num_key_value_heads);
  put("attention.key_length", c.head_dim);
  put("attention.value_length", c.head_dim);
  put("rope.dimension_count", c.head_dim);
  put("vocab_size", c.vocab_size);
  out.set(architecture + ".attention.layer_norm_rms_epsilon", c.rms_norm_eps);
  out.set(architecture + ".rope.freq_base", static_cast<float>(c.rope_theta));
  const RopeScaling& s = c.rope_scaling;
  const std::string scaling = architecture + ".rope.scaling.";
  if (s.type == RopeScaling::Type::kLinear || s.type == RopeScaling::Type::kYarn) {
    out.set(scaling + "type", s.type == RopeScaling::Type::kLinear ? "linear" : "yarn");
    out.set(scaling + "factor", static_cast<float>(s.factor));
  }
  if (s.type != RopeScaling::Type::kYarn) return;
  if (!s.truncate) {
    peft::fail<peft::ConfigError>("writing a GGUF: its YaRN always begins and ends the ramp at whole dimensions; this model's "
                                  "rope_parameters have truncate false");
  }
  put("rope.scaling.original_context_length", s.original_max_position_embeddings);
  const double attention = s.attention_factor / RopeScaling::yarn_attention_factor(s.factor);
  if (static_cast<float>(attention) != 1.0f) out.set(scaling + "attn_factor", static_cast<float>(attention));
  if (s.beta_fast != 32.0) out.set(scaling + "yarn_beta_fast", static_cast<float>(s.beta_fast));
  if (s.beta_slow != 1.0) out.set(scaling + "yarn_beta_slow", static_cast<float>(s.beta_slow));
}

namespace detail {

[[noreturn]] inline void cannot_say(std::string_view what) {
  peft::fail<peft::ConfigError>("writing a GGUF: its tokenizer metadata cannot say {}; write a folder instead", what);
}

/// Scores that order the pieces as the merges do. llama.cpp merges any two pieces that make a third, so this works only
/// where the merges are all of those, piece after piece.
inline std::vector<float> scores_of_merges(const TokenizerSpec& spec, const std::vector<bool>& is_piece) {
  TokenizerSpec scored;
  scored.tokens = spec.tokens;
  scored.is_piece = is_piece;
  std::unordered_map<std::string_view, std::size_t> ids;
  for (std::size_t i = 0; i < spec.tokens.size(); ++i) ids.emplace(spec.tokens[i], i);
  // What no merge makes comes last; its scores are never compared.
  scored.scores.assign(spec.tokens.size(), -static_cast<float>(spec.merges.size()) - 1.0f);
  std::vector<bool> made(spec.tokens.size());
  std::set<std::pair<std::string_view, std::string_view>> pairs;
  std::size_t last = spec.tokens.size();
  float rank = 1.0f;
  for (const auto& [left, right] : spec.merges) {
    const std::size_t id = ids.at(left + right);
    pairs.emplace(left, right);
    if (id == last) continue;
    if (made[id]) cannot_say("merges of one piece that are not of one rank");
    made[id] = true;
    scored.scores[id] = -(rank++);
    last = id;
  }
  const std::vector<RankedMerge> all = merges_of_scores(scored);
  const auto is_known = [&](const RankedMerge& merge) { return pairs.contains({merge.left, merge.right}); };
  if (all.size() != pairs.size() || !std::all_of(all.begin(), all.end(), is_known)) {
    cannot_say("which of the ways to put a piece together are merges");
  }
  return std::move(scored.scores);
}

/// SentencePiece's: a space before the text or none, all spaces U+2581. Returns whether there is one.
inline bool adds_space_prefix(const TokenizerSpec& spec, std::vector<std::string>& notes) {
  using Kind = NormalizerStep::Kind;
  const NormalizerStep prepend{Kind::kPrepend, "", std::string(kMetaspace)}, replace{Kind::kReplace, " ", std::string(kMetaspace)};
  if (spec.pre_tokenizer.empty()) {
    if (spec.normalizer == std::vector{prepend, replace}) return true;
    if (spec.normalizer == std::vector{replace}) return false;
  } else if (spec.normalizer.empty() && spec.pre_tokenizer.size() == 1) {
    const PreTokenizerStep& step = spec.pre_tokenizer.front();
    if (step.kind == PreTokenizerStep::Kind::kMetaspace && !step.split) {
      if (step.prepend == PreTokenizerStep::Prepend::kNever) return false;
      notes.emplace_back("in a GGUF every text gets a space in front, also behind a special token and before a space; this "
                         "tokenizer does not do so everywhere");
      return true;
    }
  }
  cannot_say("this normalizer and pre-tokenizer");
}

inline void put_byte_level(const TokenizerSpec& spec, peft::GgufMetadata& out) {
  const auto name = preset_name(spec);
  if (!name) cannot_say(fmt::format("this normalizer and pre-tokenizer: it knows those of {}", fmt::join(kPresetNames, ", ")));
  out.set("tokenizer.ggml.model", "gpt2");
  out.set("tokenizer.ggml.pre", *name);
  std::vector<std::string> merges;
  for (const auto& [left, right] : spec.merges) merges.push_back(left + " " + right);
  out.set_array("tokenizer.ggml.merges", std::span<const std::string>(merges));
}

}  // namespace detail

/// The tokenizer, with tokens of no meaning up to the model's `vocab_size`. `notes` gets what works a little differently
/// there. Throws ConfigError for what a GGUF cannot say.
inline void put_tokenizer(const TokenizerSpec& spec, Index vocab_size, peft::GgufMetadata& out, std::vector<std::string>& notes) {
  const auto count = static_cast<std::size_t>(vocab_size);
  if (spec.tokens.size() > count) {
    peft::fail<peft::ConfigError>("writing a GGUF: the tokenizer has {} tokens, the model embeds {}; expected no more",
                                  spec.tokens.size(), vocab_size);
  }
  std::vector<std::string> tokens = spec.tokens;
  tokens.resize(count);
  std::vector<GgufTokenType> types(count, GgufTokenType::kNormal);
  for (std::size_t i = 0; i < count; ++i) {
    if (!spec.byte_level && byte_token(tokens[i])) types[i] = GgufTokenType::kByte;
    if (!tokens[i].empty()) continue;
    tokens[i] = fmt::format("[PAD{}]", i);
    types[i] = GgufTokenType::kUnused;
  }
  for (const AddedToken& token : spec.added) {
    if (token.lstrip || token.rstrip) detail::cannot_say("that " + token.content + " takes white space along");
    types[static_cast<std::size_t>(token.id)] = token.special ? GgufTokenType::kControl : GgufTokenType::kUserDefined;
  }
  if (spec.unk >= 0 && !spec.byte_level) types[static_cast<std::size_t>(spec.unk)] = GgufTokenType::kUnknown;
  if (spec.byte_level) {
    detail::put_byte_level(spec, out);
  } else {
    if (!spec.byte_fallback) detail::cannot_say("that unknown characters do not become bytes");
    out.set("tokenizer.ggml.model", "llama");
    out.set("tokenizer.ggml.pre", "default");
    out.set("tokenizer.ggml.add_space_prefix", detail::adds_space_prefix(spec, notes));
    std::vector<bool> is_piece(spec.tokens.size());
    for (std::size_t i = 0; i < is_piece.size(); ++i) is_piece[i] = types[i] == GgufTokenType::kNormal;
    std::vector<float> scores = spec.scores.empty() ? detail::scores_of_merges(spec, is_piece) : spec.scores;
    scores.resize(count, -1e6f);
    out.set_array("tokenizer.ggml.scores", std::span<const float>(scores));
  }
  out.set_array("tokenizer.ggml.tokens", std::span<const std::string>(tokens));
  std::vector<std::int32_t> numbers;
  for (const GgufTokenType type : types) numbers.push_back(static_cast<std::int32_t>(type));
  out.set_array("tokenizer.ggml.token_type", std::span<const std::int32_t>(numbers));
  const auto put = [&](const char* name, std::int32_t id) {
    if (id >= 0) out.set(std::string("tokenizer.ggml.") + name + "_token_id", static_cast<std::uint32_t>(id));
  };
  const std::int32_t bos = spec.bos < 0 && spec.prefix.size() == 1 ? spec.prefix.front() : spec.bos;
  put("bos", bos);
  put("eos", spec.eos);
  put("unknown", spec.unk);
  put("padding", spec.pad);
  const auto around = [&](const char* key, const std::vector<std::int32_t>& ids, std::int32_t id) {
    if (!ids.empty() && ids != std::vector{id}) detail::cannot_say("a template of more than a beginning and an end of text");
    out.set(std::string("tokenizer.ggml.") + key, !ids.empty());
  };
  around("add_bos_token", spec.prefix, bos);
  around("add_eos_token", spec.suffix, spec.eos);
  std::vector<const char*> free_names{"eom", "eot"};
  for (const std::int32_t stop : spec.stops) {
    if (stop == spec.eos) continue;
    if (free_names.empty()) {
      notes.push_back(fmt::format("a GGUF knows three ends of text; {} is left out", spec.tokens[static_cast<std::size_t>(stop)]));
      continue;
    }
    put(free_names.back(), stop);
    free_names.pop_back();
  }
  if (!spec.chat_template.empty()) out.set("tokenizer.chat_template", spec.chat_template);
}

}  // namespace peft_examples
