#pragma once
/// The tokenizer of a Hugging Face folder: tokenizer.json, with what tokenizer_config.json and generation_config.json say of
/// its beginning and end of text; or a BERT's vocab.txt where there is no tokenizer.json.

#include <algorithm>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>

#include "hosts/tokenizer_json.hpp"
#include "hosts/vocab_txt.hpp"

namespace peft_examples {

namespace detail {

/// The id of a token in tokenizer_config.json, a text or an object with its "content"; -1 where it has none.
inline std::int32_t token_id(const JsonFields& config, std::string_view name, const TokenizerSpec& spec) {
  const peft::Json* found = config.find(name);
  if (found == nullptr) return -1;
  const std::string text = found->is_object() ? config.object(name).text("content") : config.text(name);
  const auto place = std::find(spec.tokens.begin(), spec.tokens.end(), text);
  return place != spec.tokens.end() ? static_cast<std::int32_t>(place - spec.tokens.begin()) : -1;
}

/// One id or a list of them.
inline void add_stops(const JsonFields& config, TokenizerSpec& spec) {
  const peft::Json* found = config.find("eos_token_id");
  if (found == nullptr) return;
  for (const peft::Json& id : found->is_array() ? *found : peft::Json::array({*found})) {
    if (!id.is_number_integer()) config.wrong("eos_token_id", id, "a whole number or a list of them");
    const auto value = id.get<std::int64_t>();
    if (value < 0 || value >= static_cast<std::int64_t>(spec.tokens.size())) continue;  // an embedding without a token
    const auto stop = static_cast<std::int32_t>(value);
    if (std::find(spec.stops.begin(), spec.stops.end(), stop) == spec.stops.end()) spec.stops.push_back(stop);
  }
}

}  // namespace detail

/// Throws IoError, FormatError.
inline TokenizerSpec read_tokenizer(const std::filesystem::path& folder) {
  const auto path = [&](const char* name) { return folder / name; };
  const auto has = [&](const char* name) {
    std::error_code ignored;
    return std::filesystem::exists(path(name), ignored);
  };
  if (!has("tokenizer.json") && has("vocab.txt")) {
    const peft::Json json = has("tokenizer_config.json") ? read_json(path("tokenizer_config.json")) : peft::Json::object();
    return read_vocab_txt(path("vocab.txt"), JsonFields(json, path("tokenizer_config.json").string()));
  }
  if (!has("tokenizer.json")) {
    peft::fail<peft::IoError>("loading a tokenizer: {} has no tokenizer.json and no vocab.txt; transformers writes one: "
                              "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
                              folder.string());
  }
  TokenizerSpec spec = read_tokenizer_json(read_json(path("tokenizer.json")), path("tokenizer.json").string());
  if (has("tokenizer_config.json")) {
    const peft::Json json = read_json(path("tokenizer_config.json"));
    const JsonFields config(json, path("tokenizer_config.json").string());
    spec.bos = detail::token_id(config, "bos_token", spec);
    spec.eos = detail::token_id(config, "eos_token", spec);
    spec.pad = detail::token_id(config, "pad_token", spec);
    if (spec.eos >= 0) spec.stops.push_back(spec.eos);
    // Either of these takes the place of the template in tokenizer.json, as in transformers.
    if (config.find("add_bos_token") != nullptr || config.find("add_eos_token") != nullptr) {
      spec.prefix.clear();
      spec.suffix.clear();
      if (config.truth_or("add_bos_token", false) && spec.bos >= 0) spec.prefix.push_back(spec.bos);
      if (config.truth_or("add_eos_token", false) && spec.eos >= 0) spec.suffix.push_back(spec.eos);
    }
    if (const peft::Json* chat = config.find("chat_template"); chat != nullptr && chat->is_string()) {
      spec.chat_template = chat->get<std::string>();
    }
  }
  if (has("chat_template.jinja")) {
    const auto file = peft::MappedFile::open(path("chat_template.jinja"));
    spec.chat_template.assign(reinterpret_cast<const char*>(file->bytes().data()), file->bytes().size());
  }
  // What config.json says counts only where there is no generation_config.json, as in transformers.
  const char* generation = has("generation_config.json") ? "generation_config.json" : "config.json";
  if (has(generation)) {
    const peft::Json json = read_json(path(generation));
    detail::add_stops(JsonFields(json, path(generation).string()), spec);
  }
  if (spec.eos < 0 && !spec.stops.empty()) spec.eos = spec.stops.front();
  return spec;
}

}  // namespace peft_examples
