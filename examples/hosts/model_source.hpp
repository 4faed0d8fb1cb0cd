#pragma once
/// A model as it stands in files, whichever they are: hyper-parameters and tensors under Hugging Face's names.

#include <map>
#include <string>
#include <string_view>
#include <utility>

#include "hosts/llama_config.hpp"
#include "peft/io/tensor_ref.hpp"

namespace peft_examples {

struct ModelSource {
  LlamaConfig config;
  std::map<std::string, peft::TensorRef, std::less<>> tensors;  ///< by Hugging Face's name; each keeps its file's own
  bool permuted_heads = false;  ///< the rows of q and k stand in llama.cpp's order
  std::string where;            ///< for messages

  const peft::TensorRef* find(std::string_view name) const noexcept {
    const auto found = tensors.find(name);
    return found != tensors.end() ? &found->second : nullptr;
  }
  /// Throws FormatError where there is none.
  const peft::TensorRef& tensor(std::string_view name) const {
    const peft::TensorRef* found = find(name);
    if (found == nullptr) peft::fail<peft::FormatError>("{}: has no tensor {}", where, peft::quote_text(name));
    return *found;
  }
};

}  // namespace peft_examples
