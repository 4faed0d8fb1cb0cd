#pragma once
/// A Llama host: RMSNorm, rotary embedding, grouped-query attention, SwiGLU, tied or untied head; with biases or norms of
/// q and k where the model has them. Wiring only; every piece comes from the library's public headers. In reading order:
/// hosts/llama_model.hpp (embedding, layers, final norm), hosts/llama_attention.hpp, hosts/llama_head.hpp.
///
/// Where methods enter: adapter_sites() (linears, norms, embedding and head, by name), set_adapters() (behind attention and
/// feed-forward), set_prefix() (keys and values of every layer), set_prompt() (rows of the first layer's input).

#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "hosts/kv_cache.hpp"
#include "hosts/llama_config.hpp"
#include "hosts/llama_head.hpp"
#include "hosts/llama_model.hpp"
#include "hosts/llama_weights.hpp"
#include "hosts/names.hpp"
#include "peft/activated_lora.hpp"
#include "peft/adapter_registry.hpp"
#include "peft/adapter_sites.hpp"
#include "peft/train/batch.hpp"

namespace peft_examples {

/// Movable; sites stay where they are.
template <Scalar T>
class Llama {
 public:
  using value_type = T;
  using A = Accumulator<T>;
  using accumulator_type = A;
  using Linear = AdaptedLinear<T>;
  using Layer = LlamaLayer<T>;

  /// embedding [vocab, hidden]; head: lm_head [vocab, hidden], or the embedding again where the model ties them.
  /// Throws ConfigError, ShapeError.
  Llama(LlamaConfig config, peft::RowTable<T> embedding, std::vector<LlamaLayerWeights<T>> layers, Buffer<A> final_norm,
        LlamaHeadWeights<T> head)
      : model_(std::make_unique<LlamaModel<T>>(std::move(config), std::move(embedding), std::move(layers),
                                               std::move(final_norm))),
        head_(std::make_unique<LlamaHead<T>>(std::move(head))) {
    const Linear& linear = head_->linear();
    if (linear.out_features() != this->config().vocab_size || linear.in_features() != this->config().hidden_size) {
      peft::fail<peft::ShapeError>("Llama: lm_head is [{}, {}]; expected [{}, {}]", linear.out_features(),
                                   linear.in_features(), this->config().vocab_size, this->config().hidden_size);
    }
    linears_ = sites();
    linears_.push_back(&head_->linear());
    for (Layer& layer : model_->layers()) {
      for (LlamaNorm<T>* norm : layer.norms()) norms_.push_back(&norm->adapted());
    }
    norms_.push_back(&model_->final_norm().adapted());
    embeddings_.push_back(&model_->embedding());
  }

  const LlamaConfig& config() const noexcept { return model_->config(); }
  /// The linears of the layers, in the order of the model.
  std::vector<Linear*> sites() {
    std::vector<Linear*> result;
    for (Layer& layer : model_->layers()) {
      for (Linear* linear : layer.linears()) result.push_back(linear);
    }
    return result;
  }
  /// Everything that adapters attach to by name: those linears and the head, the embedding, all norms. It views memory of
  /// this model, valid as long as it lives.
  peft::AdapterSites<T> adapter_sites() const noexcept {
    return {linears_, embeddings_, norms_, is_tied() ? linears_.back() : nullptr};
  }
  /// Parameters of the base model; a tied head counts once.
  Index parameter_count() const {
    const auto& table = model_->embedding();
    Index count = table.vocabulary() * table.width() + model_->final_norm().size();
    if (!is_tied()) count += head_->parameter_count();
    for (const Layer& layer : model_->layers()) count += layer.parameter_count();
    return count;
  }
  bool is_tied() const noexcept { return head_->address() == embedding().address(); }
  const peft::RowTable<T>& embedding() const noexcept { return std::as_const(*model_).embedding().table(); }
  VectorView<const A> final_norm() const noexcept { return model_->final_norm().weight(); }
  const Layer& layer(Index i) const { return model_->layers()[static_cast<std::size_t>(i)]; }
  void set_executor(ExecutorRef executor) noexcept {
    executor_ = executor;
    model_->set_executor(executor);
    head_->set_executor(executor);
  }

  /// What forward_backward trains and evaluate uses.
  void select(peft::Selection<T> selection) { selection_ = std::move(selection); }
  const peft::Selection<T>& selection() const noexcept { return selection_; }
  /// Puts bottleneck adapters behind, or beside, attention and feed-forward; nullptr: none. They are trained with whatever
  /// else is. Throws ShapeError for those of another model, ConfigError for those of another architecture.
  void set_adapters(std::shared_ptr<peft::AdapterSet<T>> adapters) {
    model_->adapters().set(std::move(adapters));
  }
  /// Several, composed as `setup` says by their names. Where it shares rows out, sequence i is that of offsets[i] or of
  /// caches[i]. Throws as above, and ConfigError as peft::AdapterComposition, or for a name that is none of theirs.
  /// A Fuse takes its layers from `fusion`; they alone are trained then, the adapters stay (AdapterHub's train_adapter_fusion).
  void set_adapters(const peft::AdapterSetup& setup, std::vector<std::shared_ptr<peft::AdapterSet<T>>> adapters,
                    std::shared_ptr<peft::AdapterFusionSet<T>> fusion = nullptr) {
    model_->adapters().set(setup, std::move(adapters), std::move(fusion));
  }
  /// The adapters that are set, of several the first; nullptr where there are none.
  std::shared_ptr<peft::AdapterSet<T>> adapters() const noexcept {
    return adapter_sets().empty() ? nullptr : adapter_sets().front();
  }
  const std::vector<std::shared_ptr<peft::AdapterSet<T>>>& adapter_sets() const noexcept {
    return std::as_const(*model_).adapters().sets();
  }
  /// In which type training keeps activations between forward and backward: kF32, as they were computed, or kBF16, in half
  /// the memory (hosts/llama_stored.hpp). Throws ConfigError for another, and where T has 16 bits already.
  void set_saved_activations(peft::DType type) { model_->stored().set_type(type); }
  /// Whether training keeps each layer's input only and backward makes the rest again: the same bits, in less memory and more
  /// time.
  void set_checkpointing(bool on) noexcept { model_->stored().set_checkpointing(on); }
  /// Logits that stand in memory at once (peft::LinearCrossEntropy). Throws ConfigError.
  void set_logit_bytes(Index bytes) { head_->set_logit_bytes(bytes); }
  /// Bytes that the last training pass keeps so.
  Index saved_activation_bytes() { return model_->stored().bytes(); }
  /// How the base's weights are paged, as hosts/page_weights.hpp sets it; without it they are not.
  void set_paged_weights(peft::PagedWeights paged) { model_->paged_weights() = std::move(paged); }
  const peft::PagedWeights& paged_weights() const noexcept { return model_->paged_weights(); }
  peft::PromptHost prompt_host() const noexcept {
    const LlamaConfig& c = config();
    return {c.num_hidden_layers, c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim};
  }
  /// Puts a trained prefix, or learned vectors, before every sequence; nullptr: none. Throws ShapeError for one of another
  /// model, ConfigError for both at once.
  void set_prefix(std::shared_ptr<peft::PrefixCache<T>> prefix) {
    virtual_tokens().set_prefix(std::move(prefix), prompt_host());
  }
  void set_prompt(std::shared_ptr<peft::PromptEmbedding<T>> prompt) {
    virtual_tokens().set_prompt(std::move(prompt), prompt_host());
  }
  const std::shared_ptr<peft::PrefixCache<T>>& prefix() const noexcept { return virtual_tokens().prefix(); }
  const std::shared_ptr<peft::PromptEmbedding<T>>& prompt() const noexcept { return virtual_tokens().prompt(); }
  /// Virtual tokens before every sequence.
  Index num_virtual_tokens() const noexcept { return virtual_tokens().count(); }

  // -- peft::TrainableModel ------------------------------------------------------------------------------------------
  template <class Visitor>
  void for_each_parameter(Visitor&& visit) {
    for (const auto& active : selection_.active()) active.adapter->for_each_parameter(visit);
    model_->adapters().for_each_parameter(visit);
    virtual_tokens().for_each_parameter(visit);
  }

  void forward_backward(const peft::PackedBatch& batch, double grad_scale, std::uint64_t seed, std::uint32_t step,
                        peft::LossSum& sum) {
    const peft::TrainContext<T> context{selection_of(batch), seed, step, batch.first_row, true};
    const MatrixView<const T> hidden = model_->forward(batch, context);
    model_->enter_head();
    head_->forward_backward(hidden, targets(batch), grad_scale, model_->gradient(), context, sum);
    model_->backward(batch, context);
  }

  void evaluate(const peft::PackedBatch& batch, peft::LossSum& sum) {
    const peft::TrainContext<T> context = evaluation(batch);
    const MatrixView<const T> hidden = model_->forward(batch, context);
    model_->enter_head();
    head_->evaluate(hidden, targets(batch), context.selection, sum);
  }

  // -- inference -----------------------------------------------------------------------------------------------------
  /// What stands before every sequence, for the caches of any number of them: views of the prefix, or of keys and values
  /// that the prompt is read into now, once. Null where there is neither.
  typename KvCache<T>::Prefix make_prefix() {
    virtual_tokens().encode(nullptr, executor_);
    if (prefix()) return std::make_shared<const KvPrefix<T>>(std::shared_ptr<const peft::PrefixCache<T>>(prefix()));
    if (!prompt()) return nullptr;
    const Index count = num_virtual_tokens();
    auto cache = std::make_shared<KvCache<T>>(config(), count);
    KvCache<T>* caches[] = {cache.get()};
    prompt()->write(model_->rows(count));
    // No aLoRA acts on the prompt's own rows.
    const std::span<const std::span<const std::int32_t>> no_ids;
    model_->read({&count, 1}, caches,
                 peft::has_activated(selection_) ? peft::activate_invoked(selection_, no_ids, {}, count) : selection_);
    return std::make_shared<const KvPrefix<T>>(std::shared_ptr<const KvCache<T>>(std::move(cache)));
  }

  /// Appends the new tokens of each sequence to its cache and writes the logits [sequences, vocab] after the last one.
  /// ids holds all new tokens, one sequence after another; counts[i] ≥ 1 of them belong to caches[i]. Each cache brings its
  /// own prefix. Throws ShapeError; ConfigError for a cache without prefix where the model has virtual tokens.
  void infer(VectorView<const std::int32_t> ids, std::span<const Index> counts, std::span<KvCache<T>* const> caches,
             MatrixView<A> logits) {
    Index tokens = 0;
    for (std::size_t i = 0; i < counts.size(); ++i) {
      const KvCache<T>& cache = *caches[i];
      if (cache.length() + counts[i] > cache.capacity()) {
        peft::fail<peft::ShapeError>("Llama::infer: the cache of sequence {} holds {} tokens; {} more exceed its {}", i,
                                     cache.length(), counts[i], cache.capacity());
      }
      if (num_virtual_tokens() > 0 && cache.prefix() == nullptr) {
        peft::fail<peft::ConfigError>("Llama::infer: the cache of sequence {} has no prefix and the model has {} virtual "
                                      "tokens; make it with make_prefix()'s",
                                      i, num_virtual_tokens());
      }
      tokens += counts[i];
    }
    if (tokens != ids.size) {
      peft::fail<peft::ShapeError>("Llama::infer: {} ids; expected {}, the sum of counts", ids.size, tokens);
    }
    const peft::Selection<T> selection = selection_of(ids, counts, caches);
    Matrix<T>& x = model_->rows(tokens);
    model_->paged_weights().enter(0);
    model_->embedding().forward(ids, x, selection, executor_);
    model_->read(counts, caches, selection);
    last_.resize_discard(static_cast<Index>(counts.size()), x.cols());
    Index row = 0;
    for (std::size_t i = 0; i < counts.size(); ++i) {
      row += counts[i];
      std::copy_n(x.row(row - 1), x.cols(), last_.row(static_cast<Index>(i)));
    }
    model_->enter_head();
    head_->logits(model_->normed(model_->final_norm(), last_, selection_), selection_, logits);
  }

  /// Logits [tokens, vocab] of every position of a batch, without dropout.
  void logits(const peft::PackedBatch& batch, MatrixView<A> out) {
    const peft::TrainContext<T> context = evaluation(batch);
    const MatrixView<const T> hidden = model_->forward(batch, context);
    model_->enter_head();
    head_->logits(hidden, context.selection, out);
  }

 private:
  VirtualTokens<T>& virtual_tokens() noexcept { return model_->virtual_tokens(); }
  const VirtualTokens<T>& virtual_tokens() const noexcept { return std::as_const(*model_).virtual_tokens(); }
  static VectorView<const std::int32_t> targets(const peft::PackedBatch& batch) noexcept {
    return {batch.targets.data(), batch.tokens()};
  }
  peft::TrainContext<T> evaluation(const peft::PackedBatch& batch) const { return {selection_of(batch), 0, 0, 0, false}; }

  /// The selection with the rows on which its aLoRAs act. Throws ConfigError for one on the head, which sees other rows.
  peft::Selection<T> selection_of(const peft::PackedBatch& batch) const {
    if (!peft::has_activated(selection_)) return selection_;
    check_activated();
    batch.check();
    return peft::activate_invoked(selection_, VectorView<const std::int32_t>{batch.ids.data(), batch.tokens()}, batch.offsets,
                                  virtual_tokens().rows());
  }
  /// The same for new tokens behind those of the caches.
  peft::Selection<T> selection_of(VectorView<const std::int32_t> ids, std::span<const Index> counts,
                                  std::span<KvCache<T>* const> caches) const {
    Index first = 0;
    for (std::size_t i = 0; i < counts.size(); first += counts[i++]) caches[i]->note(ids.slice(first, counts[i]));
    if (!peft::has_activated(selection_)) return selection_;
    check_activated();
    std::vector<std::span<const std::int32_t>> read;
    for (std::size_t i = 0; i < counts.size(); ++i) read.push_back(caches[i]->ids());
    return peft::activate_invoked(selection_, std::span<const std::span<const std::int32_t>>(read), counts);
  }
  void check_activated() const {
    for (const auto& entry : selection_.active()) {
      const auto* config = entry.adapter->template config_as<peft::LoraConfig>();
      if (config == nullptr || config->alora_invocation_tokens.empty()) continue;
      if (entry.adapter->find(linears_.back()->module()) == nullptr) continue;
      peft::fail<peft::ConfigError>("Llama: the aLoRA \"{}\" has a part on lm_head, which sees the rows of labels only; expected "
                                    "target_modules among the layers",
                                    entry.adapter->name());
    }
  }

  std::unique_ptr<LlamaModel<T>> model_;
  std::unique_ptr<LlamaHead<T>> head_;
  std::vector<Linear*> linears_;
  std::vector<peft::AdaptedEmbedding<T>*> embeddings_;
  std::vector<peft::AdaptedNorm<T>*> norms_;
  peft::Selection<T> selection_;
  ExecutorRef executor_ = peft::default_executor();
  Matrix<T> last_;
};

}  // namespace peft_examples
