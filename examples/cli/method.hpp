#pragma once
/// Methods on a model: started for a training, or read from an adapter's folder. Defined in method.cpp for float, bf16 and
/// f16, so that only there all methods are compiled.

#include <cstdint>
#include <filesystem>

#include "cli/method_options.hpp"
#include "cli/started_method.hpp"
#include "hosts/bpe_tokenizer.hpp"
#include "hosts/llama.hpp"
#include "peft/adapter_registry.hpp"

namespace peft_examples {

/// Puts a method on the model, started from `seed`: the model trains it from now on. Throws ConfigError for what does not
/// fit the model, ShapeError for sizes that are another model's.
template <Scalar T>
StartedMethod<T> start_method(const MethodChoice& choice, const BpeTokenizer& tokenizer, Llama<T>& model,
                              peft::AdapterRegistry<T>& registry, std::uint64_t seed);

/// Reads the adapter in `folder`, of any method, and puts it on the model. Throws IoError, FormatError, ConfigError,
/// ShapeError, NumericError.
template <Scalar T>
void load_method(const std::filesystem::path& folder, Llama<T>& model, peft::AdapterRegistry<T>& registry);

}  // namespace peft_examples
