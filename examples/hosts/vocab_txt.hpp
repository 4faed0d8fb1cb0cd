#pragma once
/// BERT's tokenizer from its first form: vocab.txt, one token a line, whose line number from 0 is its id.

#include <filesystem>
#include <string>
#include <string_view>
#include <unordered_map>

#include "hosts/json_fields.hpp"
#include "hosts/tokenizer_spec.hpp"
#include "peft/io/mapped_file.hpp"

namespace peft_examples {

/// `config`: tokenizer_config.json, or an empty object; its do_lower_case, strip_accents, tokenize_chinese_chars and names
/// of special tokens count, with the defaults of transformers' BertTokenizer. Throws IoError; FormatError where a special
/// token is missing or a token stands there twice.
inline TokenizerSpec read_vocab_txt(const std::filesystem::path& path, const JsonFields& config) {
  const auto file = peft::MappedFile::open(path);
  std::string_view text(reinterpret_cast<const char*>(file->bytes().data()), file->bytes().size());
  TokenizerSpec spec;
  spec.model = TokenizerSpec::Model::kWordPiece;
  std::unordered_map<std::string_view, std::int32_t> ids;
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    std::string_view line = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    if (line.ends_with('\r')) line.remove_suffix(1);
    const auto id = static_cast<std::int32_t>(spec.tokens.size());
    if (!line.empty() && !ids.emplace(line, id).second) {
      peft::fail<peft::FormatError>("{}, line {}: the token {} stands in line {} already", path.string(), id + 1,
                                    peft::quote_text(line), ids[line] + 1);
    }
    spec.tokens.emplace_back(line);
  }
  const auto special = [&](const char* member, const char* otherwise) {
    const peft::Json* found = config.find(member);
    const std::string name = found == nullptr      ? otherwise
                             : found->is_object() ? config.object(member).text("content")
                                                  : config.text(member);
    const auto place = ids.find(name);
    if (place == ids.end()) {
      peft::fail<peft::FormatError>("{}: has no line {}, the {}; expected a BERT's vocabulary", path.string(),
                                    peft::quote_text(name), member);
    }
    spec.added.push_back({place->second, name, true, false, false, false});
    return place->second;
  };
  spec.pad = special("pad_token", "[PAD]");
  spec.unk = special("unk_token", "[UNK]");
  spec.prefix = {special("cls_token", "[CLS]")};
  spec.suffix = {special("sep_token", "[SEP]")};
  special("mask_token", "[MASK]");
  NormalizerStep normalizer{NormalizerStep::Kind::kBert};
  normalizer.handle_chinese_chars = config.truth_or("tokenize_chinese_chars", true);
  normalizer.lowercase = config.truth_or("do_lower_case", true);
  normalizer.strip_accents = config.truth_or("strip_accents", normalizer.lowercase);
  spec.normalizer.push_back(std::move(normalizer));
  PreTokenizerStep words;
  words.kind = PreTokenizerStep::Kind::kBert;
  spec.pre_tokenizer.push_back(std::move(words));
  spec.byte_level = false;
  return spec;
}

}  // namespace peft_examples
