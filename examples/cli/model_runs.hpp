#pragma once
/// What runs a whole model, compiled once per type of activation (model_runs.cpp): commands and tests that include this see
/// declarations only.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "hosts/generate.hpp"
#include "hosts/llama.hpp"
#include "hosts/llama_loader.hpp"
#include "peft/data/instruction_data.hpp"
#include "peft/loss_sum.hpp"

namespace peft_examples {

/// Adds the loss of every record to `sum`, cut into the sub-batches of a training; on_work(records done) after each. False,
/// with `sum` incomplete, where `stop` became true.
template <Scalar T>
bool measure_loss(Llama<T>& model, const peft::InstructionData& data, peft::LossSum& sum, const std::atomic<bool>* stop,
                  const std::function<void(Index)>& on_work);

/// Adds the batch's loss to `sum`.
template <Scalar T>
void evaluate_batch(Llama<T>& model, const peft::PackedBatch& batch, peft::LossSum& sum);

/// Reads ids into a cache that has room for them.
template <Scalar T>
void read_ids(Llama<T>& model, std::span<const std::int32_t> ids, KvCache<T>& cache);

#define PEFT_CLI_MODEL_RUNS(prefix, T)                                                                                      \
  prefix template Llama<T> load_llama(const ModelSource&, const WeightStorage&, ExecutorRef);                               \
  prefix template std::vector<std::vector<std::int32_t>> generate(Llama<T>&, std::span<const std::vector<std::int32_t>>,    \
                                                                  const GenerateOptions&, Index,                            \
                                                                  const std::function<bool(std::size_t, std::int32_t)>&)
PEFT_CLI_MODEL_RUNS(extern, float);
PEFT_CLI_MODEL_RUNS(extern, peft::bf16);
PEFT_CLI_MODEL_RUNS(extern, peft::f16);

}  // namespace peft_examples
