#pragma once
/// Methods on a model: started for a training, or read from an adapter's folder. Defined in method.cpp for float, bf16 and
/// f16, so that only there all methods are compiled.

#include <cstdint>
#include <filesystem>
#include <functional>

#include "cli/method_options.hpp"
#include "cli/started_method.hpp"
#include "hosts/bpe_tokenizer.hpp"
#include "hosts/llama.hpp"
#include "peft/adapter_registry.hpp"
#include "peft/data/instruction_data.hpp"

namespace peft_examples {

/// Puts a method on the model, started from `seed`: the model trains it from now on. `original`: the weight that a linear was
/// quantised from, where they are quantised while they are read. Throws ConfigError for what does not fit the model,
/// ShapeError for sizes that are another model's.
template <Scalar T>
StartedMethod<T> start_method(const MethodChoice& choice, const BpeTokenizer& tokenizer, Llama<T>& model,
                              peft::AdapterRegistry<T>& registry, std::uint64_t seed,
                              const std::function<Matrix<Accumulator<T>>(const AdaptedLinear<T>&)>& original = {});

/// What EVA found.
struct FoundStart {
  Index batches = 0;
  bool has_settled = false;
};

/// For a choice that starts from inputs: puts in the place of what start_method made the adapter that `data` gives, from
/// batches of at least `records` records in the order of `seed`. on_batch(done) hears of each. Throws ConfigError.
template <Scalar T>
FoundStart start_from_records(const MethodChoice& choice, const peft::InstructionData& data, Index records, std::uint64_t seed,
                              Llama<T>& model, peft::AdapterRegistry<T>& registry, StartedMethod<T>& started,
                              const std::function<void(Index)>& on_batch);

/// Reads the adapter in `folder`, of any method, and puts it on the model. Throws IoError, FormatError, ConfigError,
/// ShapeError, NumericError.
template <Scalar T>
void load_method(const std::filesystem::path& folder, Llama<T>& model, peft::AdapterRegistry<T>& registry);

}  // namespace peft_examples
