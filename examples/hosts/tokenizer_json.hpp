#pragma once
/// Hugging Face's tokenizer.json, and the files beside it that belong to a tokenizer. What decides ids and is not supported
/// is refused by name; what only concerns padding, truncation or offsets is passed over.

#include <algorithm>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "hosts/json_fields.hpp"
#include "hosts/tokenizer_spec.hpp"

namespace peft_examples {

namespace detail {

[[noreturn]] inline void refuse_step(const JsonFields& step, std::string_view what, std::string_view known) {
  peft::fail<peft::FormatError>("{}: the {} {} is not supported; supported are {}", step.where(), what,
                                peft::quote_text(step.text("type")), known);
}

/// A pattern: {"String": …} or {"Regex": …}.
inline std::string read_pattern(const JsonFields& step, bool& is_literal) {
  const JsonFields pattern = step.object("pattern");
  is_literal = pattern.find("String") != nullptr;
  return pattern.text(is_literal ? "String" : "Regex");
}

inline void read_normalizer(const JsonFields& step, std::vector<NormalizerStep>& out) {
  using Kind = NormalizerStep::Kind;
  const std::string& type = step.text("type");
  if (type == "Sequence") {
    for (const peft::Json& inner : step.list("normalizers")) read_normalizer(JsonFields(inner, step.where()), out);
  } else if (type == "NFC" || type == "NFD" || type == "NFKC" || type == "NFKD") {
    out.push_back({type == "NFC" ? Kind::kNfc : type == "NFD" ? Kind::kNfd : type == "NFKC" ? Kind::kNfkc : Kind::kNfkd});
  } else if (type == "Prepend") {
    out.push_back({Kind::kPrepend, "", step.text("prepend")});
  } else if (type == "Replace") {
    bool is_literal = false;
    std::string pattern = read_pattern(step, is_literal);
    if (!is_literal) step.wrong("pattern", step.need("pattern"), "{\"String\": …}: this normalizer replaces plain text");
    out.push_back({Kind::kReplace, std::move(pattern), step.text("content")});
  } else if (type == "BertNormalizer") {
    NormalizerStep one{Kind::kBert};
    one.clean_text = step.truth_or("clean_text", true);
    one.handle_chinese_chars = step.truth_or("handle_chinese_chars", true);
    one.lowercase = step.truth_or("lowercase", true);
    one.strip_accents = step.truth_or("strip_accents", one.lowercase);
    out.push_back(std::move(one));
  } else {
    refuse_step(step, "normalizer", "NFC, NFD, NFKC, NFKD, Prepend, Replace, BertNormalizer and Sequence");
  }
}

template <class Value>
Value choose(const JsonFields& step, std::string_view name, std::string_view otherwise,
             std::initializer_list<std::pair<std::string_view, Value>> values) {
  const std::string text = step.text_or(name, otherwise);
  std::string known;
  for (const auto& [spelling, value] : values) {
    if (spelling == text) return value;
    known += (known.empty() ? "" : ", ") + std::string(spelling);
  }
  step.wrong(name, step.need(name), "one of " + known);
}

inline void read_pre_tokenizer(const JsonFields& step, std::vector<PreTokenizerStep>& out) {
  using Kind = PreTokenizerStep::Kind;
  using Behavior = PreTokenizerStep::Behavior;
  using Prepend = PreTokenizerStep::Prepend;
  const std::string& type = step.text("type");
  if (!out.empty() && out.back().kind == Kind::kByteLevel) {
    peft::fail<peft::FormatError>("{}: {} stands behind ByteLevel; expected ByteLevel to be the last", step.where(),
                                  peft::quote_text(type));
  }
  PreTokenizerStep one;
  if (type == "Sequence") {
    for (const peft::Json& inner : step.list("pretokenizers")) read_pre_tokenizer(JsonFields(inner, step.where()), out);
    return;
  }
  if (type == "Split") {
    one.kind = Kind::kSplit;
    one.pattern = read_pattern(step, one.is_literal);
    one.behavior = choose<Behavior>(step, "behavior", "", {{"Isolated", Behavior::kIsolated}, {"Removed", Behavior::kRemoved},
                                                           {"MergedWithPrevious", Behavior::kMergedWithPrevious},
                                                           {"MergedWithNext", Behavior::kMergedWithNext},
                                                           {"Contiguous", Behavior::kContiguous}});
    one.invert = step.truth_or("invert", false);
  } else if (type == "Digits") {
    one.kind = Kind::kDigits;
    one.individual_digits = step.truth_or("individual_digits", false);
  } else if (type == "ByteLevel") {
    one.kind = Kind::kByteLevel;
    one.add_prefix_space = step.truth_or("add_prefix_space", true);
    one.use_regex = step.truth_or("use_regex", true);
  } else if (type == "Metaspace") {
    one.kind = Kind::kMetaspace;
    if (step.text("replacement") != kMetaspace) step.wrong("replacement", step.need("replacement"), "\"▁\", U+2581");
    const bool old_always = step.truth_or("add_prefix_space", true);
    one.prepend = choose<Prepend>(step, "prepend_scheme", old_always ? "always" : "never",
                                  {{"always", Prepend::kAlways}, {"first", Prepend::kFirst}, {"never", Prepend::kNever}});
    one.split = step.truth_or("split", true);
  } else if (type == "BertPreTokenizer") {
    one.kind = Kind::kBert;
  } else {
    refuse_step(step, "pre-tokenizer", "ByteLevel, Split, Digits, Metaspace, BertPreTokenizer and Sequence");
  }
  out.push_back(std::move(one));
}

/// ByteLevel, or SentencePiece's: U+2581 to spaces, byte tokens to bytes, spaces at the front away.
inline void read_decoder(const JsonFields& step, TokenizerSpec& spec, bool& byte_level) {
  const std::string& type = step.text("type");
  if (type == "Sequence") {
    for (const peft::Json& inner : step.list("decoders")) read_decoder(JsonFields(inner, step.where()), spec, byte_level);
  } else if (type == "ByteLevel") {
    byte_level = true;
  } else if (type == "Strip") {
    if (step.text("content") != " " || step.whole("stop") != 0) {
      step.wrong("content", step.need("content"), "\" \" with stop 0: spaces at the front are all that decoding strips");
    }
    spec.strip_left = static_cast<int>(std::clamp<Index>(step.whole("start"), 0, 1 << 20));
  } else if (type == "Replace") {
    bool is_literal = false;
    if (read_pattern(step, is_literal) != kMetaspace || step.text("content") != " ") {
      step.wrong("content", step.need("content"), "\" \" for \"▁\": decoding replaces nothing else");
    }
  } else if (type == "Metaspace") {
    if (step.text_or("prepend_scheme", step.truth_or("add_prefix_space", true) ? "always" : "never") != "never") spec.strip_left = 1;
  } else if (type == "WordPiece" && spec.model == TokenizerSpec::Model::kWordPiece) {
    if (step.text_or("prefix", "##") != spec.continuing_prefix) step.wrong("prefix", step.need("prefix"), "the model's continuing_subword_prefix");
    spec.cleanup = step.truth_or("cleanup", true);
  } else if (type != "ByteFallback" && type != "Fuse") {
    refuse_step(step, "decoder", "ByteLevel, Replace, ByteFallback, Fuse, Strip, Metaspace and Sequence, and WordPiece for its own model");
  }
}

/// The ids that a template puts around a text.
inline void read_post_processor(const JsonFields& step, TokenizerSpec& spec) {
  const std::string& type = step.text("type");
  if (type == "ByteLevel") return;  // moves offsets only
  if (type == "Sequence") {
    for (const peft::Json& inner : step.list("processors")) read_post_processor(JsonFields(inner, step.where()), spec);
    return;
  }
  if (type == "BertProcessing") {
    for (const auto& [name, ids] : {std::pair{"cls", &spec.prefix}, {"sep", &spec.suffix}}) {
      const peft::Json& token = step.list(name);
      if (token.size() != 2 || !token[1].is_number_integer()) step.wrong(name, token, "a token and its id");
      ids->push_back(token[1].get<std::int32_t>());
    }
    return;
  }
  if (type != "TemplateProcessing") refuse_step(step, "post-processor", "TemplateProcessing, BertProcessing, ByteLevel and Sequence");
  bool behind = false;
  for (const peft::Json& part : step.list("single")) {
    const JsonFields piece(part, step.where() + ", single");
    if (piece.find("Sequence") != nullptr) {
      if (behind) step.wrong("single", step.need("single"), "one Sequence: a text stands in its template once");
      behind = true;
      continue;
    }
    const std::string name = piece.object("SpecialToken").text("id");
    for (const peft::Json& id : step.object("special_tokens").object(name).list("ids")) {
      if (!id.is_number_integer()) step.wrong("special_tokens", id, "whole numbers as ids");
      (behind ? spec.suffix : spec.prefix).push_back(id.get<std::int32_t>());
    }
  }
}

inline void put_token(TokenizerSpec& spec, std::int64_t id, const std::string& text, const std::string& where) {
  constexpr std::int64_t kMost = 1 << 24;
  if (id < 0 || id >= kMost) peft::fail<peft::FormatError>("{}: token {} has the id {}; expected 0 to {}", where, peft::quote_text(text), id, kMost - 1);
  const auto at = static_cast<std::size_t>(id);
  if (at >= spec.tokens.size()) spec.tokens.resize(at + 1);
  if (!spec.tokens[at].empty() && spec.tokens[at] != text) {
    peft::fail<peft::FormatError>("{}: the id {} belongs to {} and to {}", where, id, peft::quote_text(spec.tokens[at]), peft::quote_text(text));
  }
  spec.tokens[at] = text;
}

inline void read_vocabulary(const JsonFields& model, TokenizerSpec& spec) {
  const JsonFields vocab = model.object("vocab");
  for (const auto& [text, id] : vocab.json().items()) {
    if (!id.is_number_integer()) vocab.wrong(text, id, "a whole number");
    put_token(spec, id.get<std::int64_t>(), text, vocab.where());
  }
}

inline void read_word_piece(const JsonFields& model, TokenizerSpec& spec) {
  spec.model = TokenizerSpec::Model::kWordPiece;
  spec.continuing_prefix = model.text_or("continuing_subword_prefix", "##");
  const Index most = model.whole_or("max_input_chars_per_word", 100);
  if (most < 1) model.wrong("max_input_chars_per_word", model.need("max_input_chars_per_word"), "at least 1");
  spec.max_input_chars_per_word = static_cast<std::int32_t>(std::min<Index>(most, 1 << 30));
  model.text("unk_token");
  read_vocabulary(model, spec);
}

inline void read_bpe(const JsonFields& model, TokenizerSpec& spec) {
  // Old files leave the type out; Unigram has no merges.
  if (model.text_or("type", "BPE") != "BPE" || model.find("merges") == nullptr) {
    peft::fail<peft::FormatError>("{}: the type is {}; expected \"BPE\" with merges, or \"WordPiece\"", model.where(), peft::quote_text(model.text_or("type", "")));
  }
  if (model.number_or("dropout", 0.0) != 0.0) model.wrong("dropout", model.need("dropout"), "null: encoding draws nothing by chance");
  for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!model.text_or(name, "").empty()) model.wrong(name, model.need(name), "none: words are not marked at their ends");
  }
  spec.byte_fallback = model.truth_or("byte_fallback", false);
  spec.fuse_unk = model.truth_or("fuse_unk", false);
  spec.ignore_merges = model.truth_or("ignore_merges", false);
  read_vocabulary(model, spec);
  for (const peft::Json& merge : model.list("merges")) {
    if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      spec.merges.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
      continue;
    }
    const std::string text = merge.is_string() ? merge.get<std::string>() : "";
    const std::size_t space = text.find(' ');
    if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) {
      model.wrong(fmt::format("merge {}", spec.merges.size()), merge, "two pieces: [\"a\", \"b\"] or \"a b\"");
    }
    spec.merges.emplace_back(text.substr(0, space), text.substr(space + 1));
  }
}

inline void read_added_tokens(const JsonFields& file, TokenizerSpec& spec) {
  if (file.find("added_tokens") == nullptr) return;
  for (const peft::Json& json : file.list("added_tokens")) {
    const JsonFields token(json, file.where() + ", added_tokens");
    AddedToken one{static_cast<std::int32_t>(std::clamp<Index>(token.whole("id"), -1, 1 << 24)), token.text("content"),
                   token.truth_or("special", false), token.truth_or("normalized", true),
                   token.truth_or("lstrip", false), token.truth_or("rstrip", false)};
    if (token.truth_or("single_word", false)) {
      token.wrong("single_word", token.need("single_word"), "false: added tokens are found within words too");
    }
    put_token(spec, one.id, one.content, token.where());
    spec.added.push_back(std::move(one));
  }
}

}  // namespace detail

/// A tokenizer.json. Throws FormatError, naming what is wrong or not supported.
inline TokenizerSpec read_tokenizer_json(const peft::Json& json, const std::string& where) {
  const JsonFields file(json, where);
  TokenizerSpec spec;
  const JsonFields model = file.object("model");
  const bool is_word_piece = model.text_or("type", "") == "WordPiece" ||
                             (model.find("type") == nullptr && model.find("max_input_chars_per_word") != nullptr);
  is_word_piece ? detail::read_word_piece(model, spec) : detail::read_bpe(model, spec);
  detail::read_added_tokens(file, spec);
  if (file.find("normalizer") != nullptr) detail::read_normalizer(file.object("normalizer"), spec.normalizer);
  if (file.find("pre_tokenizer") != nullptr) detail::read_pre_tokenizer(file.object("pre_tokenizer"), spec.pre_tokenizer);
  if (file.find("post_processor") != nullptr) detail::read_post_processor(file.object("post_processor"), spec);
  spec.byte_level = !spec.pre_tokenizer.empty() && spec.pre_tokenizer.back().kind == PreTokenizerStep::Kind::kByteLevel;
  bool decodes_bytes = false;
  if (file.find("decoder") != nullptr) detail::read_decoder(file.object("decoder"), spec, decodes_bytes);
  if (decodes_bytes != spec.byte_level) {
    peft::fail<peft::FormatError>("{}: the pre-tokenizer {} ByteLevel and the decoder {}; expected both or neither", where,
                                  spec.byte_level ? "ends with" : "is not", decodes_bytes ? "is" : "is not");
  }
  if (model.find("unk_token") != nullptr) {
    const auto found = std::find(spec.tokens.begin(), spec.tokens.end(), model.text("unk_token"));
    if (found == spec.tokens.end()) model.wrong("unk_token", model.need("unk_token"), "a token of the vocabulary");
    spec.unk = static_cast<std::int32_t>(found - spec.tokens.begin());
  }
  for (const auto* ids : {&spec.prefix, &spec.suffix}) {
    for (const std::int32_t id : *ids) {
      if (id >= 0 && id < static_cast<std::int32_t>(spec.tokens.size())) continue;
      peft::fail<peft::FormatError>("{}: the template has the id {}, outside the vocabulary of {}", where, id, spec.tokens.size());
    }
  }
  return spec;
}

}  // namespace peft_examples
