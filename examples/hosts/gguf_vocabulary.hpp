#pragma once
/// The tokenizer that a GGUF carries.

#include <string>

#include "hosts/bpe_tokenizer.hpp"
#include "peft/io/gguf.hpp"

namespace peft_examples {

/// Throws FormatError for a file without a byte-level BPE vocabulary.
inline BpeVocabulary read_bpe_vocabulary(const peft::GgufFile& file) {
  const auto model = file.get<std::string_view>("tokenizer.ggml.model");
  if (model != "gpt2") {
    peft::fail<peft::FormatError>("loading a tokenizer: its model is \"{}\"; expected \"gpt2\", byte-level BPE", model);
  }
  BpeVocabulary v;
  for (const std::string_view text : file.strings("tokenizer.ggml.tokens")) v.tokens.emplace_back(text);
  for (const std::string_view text : file.strings("tokenizer.ggml.merges")) v.merges.emplace_back(text);
  if (file.has("tokenizer.ggml.token_type")) {
    const auto types = file.array<std::int32_t>("tokenizer.ggml.token_type");
    for (peft::Index i = 0; i < static_cast<peft::Index>(types.size()); ++i) v.token_types.push_back(types[i]);
  }
  v.pre_tokenizer = std::string(file.get_or<std::string_view>("tokenizer.ggml.pre", "gpt-2"));
  v.bos = file.get_or<std::int32_t>("tokenizer.ggml.bos_token_id", -1);
  v.eos = file.get_or<std::int32_t>("tokenizer.ggml.eos_token_id", -1);
  return v;
}

}  // namespace peft_examples
