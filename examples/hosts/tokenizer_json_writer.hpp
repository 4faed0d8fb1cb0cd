#pragma once
/// A tokenizer as Hugging Face's files: tokenizer.json, tokenizer_config.json, special_tokens_map.json.

#include <string>
#include <string_view>

#include "hosts/bpe_model.hpp"
#include "hosts/tokenizer_spec.hpp"
#include "peft/core/view.hpp"
#include "peft/io/json.hpp"

namespace peft_examples {

namespace detail {

using peft::Json;

inline Json sequence_of(const char* member, Json steps) {
  if (steps.empty()) return nullptr;
  if (steps.size() == 1) return steps.front();
  return {{"type", "Sequence"}, {member, std::move(steps)}};
}

inline Json normalizer_json(const NormalizerStep& step) {
  using Kind = NormalizerStep::Kind;
  switch (step.kind) {
    case Kind::kNfc:
      return {{"type", "NFC"}};
    case Kind::kNfd:
      return {{"type", "NFD"}};
    case Kind::kNfkc:
      return {{"type", "NFKC"}};
    case Kind::kNfkd:
      return {{"type", "NFKD"}};
    case Kind::kPrepend:
      return {{"type", "Prepend"}, {"prepend", step.content}};
    case Kind::kBert:
      return {{"type", "BertNormalizer"},
              {"clean_text", step.clean_text},
              {"handle_chinese_chars", step.handle_chinese_chars},
              {"strip_accents", step.strip_accents},
              {"lowercase", step.lowercase}};
    case Kind::kReplace:
      break;
  }
  return {{"type", "Replace"}, {"pattern", {{"String", step.pattern}}}, {"content", step.content}};
}

inline Json pre_tokenizer_json(const PreTokenizerStep& step) {
  using Kind = PreTokenizerStep::Kind;
  constexpr const char* kBehaviors[] = {"Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
  constexpr const char* kPrepends[] = {"always", "first", "never"};
  switch (step.kind) {
    case Kind::kSplit:
      return {{"type", "Split"},
              {"pattern", {{step.is_literal ? "String" : "Regex", step.pattern}}},
              {"behavior", kBehaviors[static_cast<int>(step.behavior)]},
              {"invert", step.invert}};
    case Kind::kDigits:
      return {{"type", "Digits"}, {"individual_digits", step.individual_digits}};
    case Kind::kByteLevel:
      return {{"type", "ByteLevel"}, {"add_prefix_space", step.add_prefix_space}, {"trim_offsets", true}, {"use_regex", step.use_regex}};
    case Kind::kBert:
      return {{"type", "BertPreTokenizer"}};
    case Kind::kMetaspace:
      break;
  }
  return {{"type", "Metaspace"},
          {"replacement", std::string(kMetaspace)},
          {"prepend_scheme", kPrepends[static_cast<int>(step.prepend)]},
          {"split", step.split}};
}

inline Json decoder_json(const TokenizerSpec& spec) {
  if (spec.model == TokenizerSpec::Model::kWordPiece) {
    return {{"type", "WordPiece"}, {"prefix", spec.continuing_prefix}, {"cleanup", spec.cleanup}};
  }
  if (spec.byte_level) return {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}};
  Json steps = Json::array({{{"type", "Replace"}, {"pattern", {{"String", std::string(kMetaspace)}}}, {"content", " "}},
                            {{"type", "ByteFallback"}},
                            {{"type", "Fuse"}}});
  if (spec.strip_left > 0) steps.push_back({{"type", "Strip"}, {"content", " "}, {"start", spec.strip_left}, {"stop", 0}});
  return sequence_of("decoders", std::move(steps));
}

inline Json template_json(const TokenizerSpec& spec) {
  if (spec.prefix.empty() && spec.suffix.empty()) return nullptr;
  Json single = Json::array(), pair = Json::array(), tokens = Json::object();
  const auto put = [&](Json& list, const std::vector<std::int32_t>& ids, int type) {
    for (const std::int32_t id : ids) {
      const std::string& text = spec.tokens[static_cast<std::size_t>(id)];
      list.push_back({{"SpecialToken", {{"id", text}, {"type_id", type}}}});
      tokens[text] = {{"id", text}, {"ids", Json::array({id})}, {"tokens", Json::array({text})}};
    }
  };
  const auto text = [&](Json& list, const char* name, int type) {
    put(list, spec.prefix, type);
    list.push_back({{"Sequence", {{"id", name}, {"type_id", type}}}});
    put(list, spec.suffix, type);
  };
  text(single, "A", 0);
  text(pair, "A", 0);
  text(pair, "B", 1);
  return {{"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}, {"special_tokens", tokens}};
}

}  // namespace detail

/// tokenizer.json. Scores become merges in their order. `is_unused(id)` leaves tokens out that stand for nothing.
template <class Unused>
peft::Json tokenizer_json(const TokenizerSpec& spec, Unused&& is_unused) {
  using detail::Json;
  Json added = Json::array(), normalizer = Json::array(), pre_tokenizer = Json::array(), vocab = Json::object(), merges = Json::array();
  for (const AddedToken& token : spec.added) {
    added.push_back({{"id", token.id}, {"content", token.content}, {"single_word", false}, {"lstrip", token.lstrip},
                     {"rstrip", token.rstrip}, {"normalized", token.normalized}, {"special", token.special}});
  }
  for (const NormalizerStep& step : spec.normalizer) normalizer.push_back(detail::normalizer_json(step));
  for (const PreTokenizerStep& step : spec.pre_tokenizer) pre_tokenizer.push_back(detail::pre_tokenizer_json(step));
  auto& members = vocab.get_ref<Json::object_t&>();  // an ordered map's emplace would search all members each time
  for (std::size_t i = 0; i < spec.tokens.size(); ++i) {
    if (!spec.tokens[i].empty() && !is_unused(i)) members.push_back({spec.tokens[i], Json(i)});
  }
  for (const auto& [left, right] : spec.merges) merges.push_back(Json::array({left, right}));
  if (!spec.scores.empty()) {
    for (const RankedMerge& merge : merges_of_scores(spec)) merges.push_back(Json::array({merge.left, merge.right}));
  }
  const Json unk = spec.unk >= 0 ? Json(spec.tokens[static_cast<std::size_t>(spec.unk)]) : Json(nullptr);
  Json model = {{"type", "BPE"},
                {"dropout", nullptr},
                {"unk_token", unk},
                {"continuing_subword_prefix", nullptr},
                {"end_of_word_suffix", nullptr},
                {"fuse_unk", spec.fuse_unk},
                {"byte_fallback", spec.byte_fallback},
                {"ignore_merges", spec.ignore_merges}};
  if (spec.model == TokenizerSpec::Model::kWordPiece) {
    model = {{"type", "WordPiece"},
             {"unk_token", unk},
             {"continuing_subword_prefix", spec.continuing_prefix},
             {"max_input_chars_per_word", spec.max_input_chars_per_word}};
  } else {
    model["merges"] = std::move(merges);
  }
  model["vocab"] = std::move(vocab);
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", std::move(added)},
          {"normalizer", detail::sequence_of("normalizers", std::move(normalizer))},
          {"pre_tokenizer", detail::sequence_of("pretokenizers", std::move(pre_tokenizer))},
          {"post_processor", detail::template_json(spec)},
          {"decoder", detail::decoder_json(spec)},
          {"model", std::move(model)}};
}

/// The named special tokens of a tokenizer: bos_token, eos_token, unk_token, pad_token.
inline peft::Json special_tokens_json(const TokenizerSpec& spec) {
  peft::Json json = peft::Json::object();
  const auto put = [&](const char* name, std::int32_t id) {
    if (id >= 0) json[name] = spec.tokens[static_cast<std::size_t>(id)];
  };
  put("bos_token", spec.bos);
  put("eos_token", spec.eos);
  put("unk_token", spec.unk);
  put("pad_token", spec.pad);
  return json;
}

/// tokenizer_config.json: transformers takes everything else from tokenizer.json as it is.
inline peft::Json tokenizer_config_json(const TokenizerSpec& spec, peft::Index model_max_length) {
  peft::Json json = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                     {"model_max_length", model_max_length},
                     {"clean_up_tokenization_spaces", false}};
  json.update(special_tokens_json(spec));
  if (!spec.chat_template.empty()) json["chat_template"] = spec.chat_template;
  return json;
}

}  // namespace peft_examples
