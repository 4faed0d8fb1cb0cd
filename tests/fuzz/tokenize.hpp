#pragma once
/// A tokenizer that was read is also used: its ids stay in its vocabulary and can be decoded.

#include <cstdlib>
#include <utility>

#include "hosts/bpe_tokenizer.hpp"

namespace fuzz {

inline void tokenize(peft_examples::TokenizerSpec spec) {
  const peft_examples::BpeTokenizer tokenizer(std::move(spec));
  const auto ids = tokenizer.encode("Hello w\xC3\xB6rld, 123 <|im_end|>\n\xFF");
  for (const auto id : ids) {
    if (id < 0 || static_cast<std::size_t>(id) >= tokenizer.spec().tokens.size()) std::abort();
  }
  (void)tokenizer.decode(ids);
}

}  // namespace fuzz
