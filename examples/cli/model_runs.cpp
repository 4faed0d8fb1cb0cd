/// The models' passes, compiled once per type of activation.

#include "cli/model_runs.hpp"

#include "cli/method.hpp"
#include "cli/session.hpp"
#include "hosts/open_model.hpp"
#include "hosts/open_tokenizer.hpp"
#include "peft/train/evaluate_loss.hpp"
#include "peft/train/trainer_config.hpp"

namespace peft_examples {

template <Scalar T>
Session<T>::Session(const ModelOptions& options)
    : path_(options.model), quantizes_(options.storage().quantizes()), tokenizer_(open_tokenizer(options.model)), model_(load_llama<T>(open_model(options.model), options.storage())), sites_(model_.sites()) {
  if (!options.adapter.empty()) load_method(options.adapter, model_, registry_);
}

template <Scalar T>
bool measure_loss(Llama<T>& model, const peft::InstructionData& data, peft::LossSum& sum, const std::atomic<bool>* stop,
                  const std::function<void(Index)>& on_work) {
  const Index tokens = peft::TrainerConfig().max_tokens_per_sub_batch;  // cut as in training: the same sum
  return peft::evaluate_loss(model, data, tokens, sum, stop, on_work);
}

template <Scalar T>
void evaluate_batch(Llama<T>& model, const peft::PackedBatch& batch, peft::LossSum& sum) {
  model.evaluate(batch, sum);
}

template <Scalar T>
void read_ids(Llama<T>& model, std::span<const std::int32_t> ids, KvCache<T>& cache) {
  const auto count = static_cast<Index>(ids.size());
  KvCache<T>* caches[] = {&cache};
  Matrix<Accumulator<T>> logits(1, model.config().vocab_size);
  model.infer({ids.data(), count}, {&count, 1}, caches, logits);
}

#define PEFT_CLI_RUNS(T)                                                                                       \
  PEFT_CLI_MODEL_RUNS(, T);                                                                                    \
  template Session<T>::Session(const ModelOptions&);                                                           \
  template bool measure_loss(Llama<T>&, const peft::InstructionData&, peft::LossSum&, const std::atomic<bool>*, \
                             const std::function<void(Index)>&);                                               \
  template void evaluate_batch(Llama<T>&, const peft::PackedBatch&, peft::LossSum&);                            \
  template void read_ids(Llama<T>&, std::span<const std::int32_t>, KvCache<T>&)
PEFT_CLI_RUNS(float);
PEFT_CLI_RUNS(peft::bf16);
PEFT_CLI_RUNS(peft::f16);
#undef PEFT_CLI_RUNS

}  // namespace peft_examples
