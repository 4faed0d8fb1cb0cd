#pragma once
/// What a training of a Llama takes in memory, computed from shapes: before it begins, or without having the model
/// (hosts/zero_llama.hpp).

#include <algorithm>
#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "hosts/llama.hpp"
#include "hosts/model_source.hpp"
#include "hosts/weight_storage.hpp"
#include "peft/linear_cross_entropy.hpp"
#include "peft/train/adamw.hpp"

namespace peft_examples {

/// How one sub-batch goes through the model.
struct LlamaPass {
  Index tokens = 0;            ///< at most, of its records
  Index number_bytes = 4;      ///< of an activation
  bool checkpoints = false;    ///< Llama::set_checkpointing
  bool rounds = false;         ///< Llama::set_saved_activations(kBF16)
  Index logit_bytes = peft::LinearCrossEntropy<float>::kLogitBytes;
  Index threads = 1;
};

/// What a method on a model trains, and adds to what a pass keeps.
struct LlamaMethodMemory {
  struct Layer {
    bool attention = false;   ///< keeps attention's result: o_proj is adapted
    bool made_again = false;  ///< its output is not kept: an adapter makes it again
    Index per_token = 0;      ///< bytes that adapters keep
    Index fixed = 0;          ///< the same whatever the tokens: factors made of parameters
  };
  std::vector<Layer> layers;
  std::vector<Index> parameters;  ///< numbers of each
  Index frozen = 0;               ///< numbers that belong to the method and are not trained (VeRA's projections)
  Index virtual_rows = 0;         ///< a prompt's
  Index scratch = 0;              ///< bytes per token while one layer is computed
  bool has_adapters = false;      ///< bottlenecks
  bool trains_head = false;

  Index parameter_count() const noexcept {
    Index count = 0;
    for (const Index one : parameters) count += one;
    return count;
  }
};

/// Of the method on the model, which trains it. Works a method's factors out where it makes some (LoHa).
template <Scalar T>
LlamaMethodMemory method_memory(Llama<T>& model) {
  using A = Accumulator<T>;
  constexpr auto kNumber = static_cast<Index>(sizeof(T)), kSum = static_cast<Index>(sizeof(A));
  LlamaMethodMemory result;
  model.for_each_parameter([&](const peft::ParameterInfo&, VectorView<A> value, VectorView<A>) { result.parameters.push_back(value.size); });
  if (const auto& prompt = model.prompt()) result.virtual_rows = prompt->num_virtual_tokens();
  const peft::Selection<T>& selection = model.selection();
  for (const auto& entry : selection.active()) {
    entry.adapter->for_each_weight([&](const peft::ParameterInfo& info, VectorView<A> value, VectorView<A>) {
      if (!info.trained) result.frozen += value.size;
    });
  }
  const auto add_linear = [&](const AdaptedLinear<T>& linear, LlamaMethodMemory::Layer& to) {
    const Index in = linear.in_features(), out = linear.out_features();
    Index scratch = 0;
    bool has_gain = false;
    for (const auto& one : linear.updates_of(selection)) {
      const auto kind = one.update->kind();
      const bool drops = one.update->dropout() > 0.0f;
      to.per_token += one.update->rank() * kSum;
      scratch += one.update->rank() * kSum + (drops ? (in + 7) / 8 : 0);
      if (kind == peft::UpdateKind::kOutputGain && drops && !one.update->gain_covers_bias()) {
        to.per_token += out * kNumber;
        scratch += in * kNumber;
      }
      if (kind == peft::UpdateKind::kInputGain) scratch += 2 * in * kNumber;
      has_gain = has_gain || kind == peft::UpdateKind::kOutputGain;
      if (kind != peft::UpdateKind::kTerms) continue;
      peft::UpdateSaved<T> made;
      std::vector<peft::BasicMergeTerm<A>> terms;
      one.update->merge_terms(1.0, made, terms);
      to.fixed += (made.a.size() + made.b.size()) * kSum;
    }
    if (has_gain) to.per_token += out * kNumber, scratch += out * kNumber;
    result.scratch = std::max(result.scratch, scratch);
  };
  for (Index i = 0; i < model.config().num_hidden_layers; ++i) {
    const LlamaLayer<T>& layer = model.layer(i);
    LlamaMethodMemory::Layer own;
    own.attention = layer.o.is_adapted(selection);
    for (const AdaptedLinear<T>* linear : layer.linears()) add_linear(*linear, own);
    const bool several = model.adapter_sets().size() > 1;
    for (const peft::AdapterSite site : {peft::AdapterSite::kAttention, peft::AdapterSite::kOutput}) {
      Index here = 0;
      for (const auto& set : model.adapter_sets()) {
        const peft::Adapter<T>* adapter = set->find(i, site);
        if (adapter == nullptr) continue;
        const Index hidden = adapter->hidden_size(), width = adapter->bottleneck_size();
        own.per_token += width * kSum + (several ? 2 * hidden * kSum : 0) + (set->config().ln_after ? hidden * kNumber : 0);
        result.scratch = std::max(result.scratch, 2 * width * kSum + hidden * (kSum + kNumber));
        here = hidden;
      }
      own.per_token += here * kNumber;
      result.has_adapters = result.has_adapters || here > 0;
      if (site == peft::AdapterSite::kOutput) own.made_again = here > 0 && !several;
    }
    result.layers.push_back(own);
  }
  result.trains_head = model.adapter_sites().linears.back()->is_adapted(selection);
  return result;
}

namespace detail {

/// Numbers per token that a layer keeps beside its input, as LlamaSaved has them.
inline Index layer_numbers(const LlamaConfig& c, const LlamaMethodMemory::Layer& layer) noexcept {
  const Index query = c.num_attention_heads * c.head_dim, key = c.num_key_value_heads * c.head_dim;
  return query + 2 * key + c.hidden_size + 2 * c.intermediate_size + (layer.attention ? query : 0) + (c.qk_norm ? query + key : 0);
}

}  // namespace detail

/// Bytes of inputs and activations, as Llama::saved_activation_bytes() counts them.
inline Index stored_activation_bytes(const LlamaConfig& c, const LlamaMethodMemory& method, const LlamaPass& pass) {
  const Index rows = pass.tokens + method.virtual_rows, layers = c.num_hidden_layers;
  Index all = 0, most = 0;
  for (const auto& layer : method.layers) {
    const Index own = detail::layer_numbers(c, layer);
    all += own;
    most = std::max(most, own);
  }
  constexpr Index kRounded = 2;
  if (pass.rounds) {
    return rows * (pass.number_bytes * (2 * c.hidden_size + most) + kRounded * (layers * c.hidden_size + (pass.checkpoints ? 0 : all)));
  }
  if (pass.checkpoints) return rows * pass.number_bytes * ((layers + 1) * c.hidden_size + most);
  Index inputs = layers + 1;
  std::array<bool, 2> shared{};
  for (Index i = 0; i < layers; ++i) {
    if (!method.layers[static_cast<std::size_t>(i)].made_again) continue;
    --inputs;
    shared[static_cast<std::size_t>((i + 1) % 2)] = true;
  }
  inputs += (shared[0] ? 1 : 0) + (shared[1] ? 1 : 0);
  return rows * pass.number_bytes * (inputs * c.hidden_size + all);
}

/// Everything that is kept between forward and backward: those, attention's log-sum-exp, and what adapters keep.
inline Index activation_bytes(const LlamaConfig& c, const LlamaMethodMemory& method, const LlamaPass& pass) {
  const Index rows = pass.tokens + method.virtual_rows;
  Index all = 0, most = 0;
  for (const auto& layer : method.layers) {
    const Index own = rows * layer.per_token + layer.fixed;
    all += own;
    most = std::max(most, own);
  }
  const Index kept_layers = pass.checkpoints ? 1 : c.num_hidden_layers;
  constexpr Index kSum = 4;
  return stored_activation_bytes(c, method, pass) + rows * kept_layers * c.num_attention_heads * kSum + (pass.checkpoints ? most : all);
}

/// What is needed while a layer, or the head, is computed: gradients of activations, a chunk of logits, the kernels' memory.
inline Index workspace_bytes(const LlamaConfig& c, const LlamaMethodMemory& method, const LlamaPass& pass) {
  const Index rows = pass.tokens + method.virtual_rows;
  const Index query = c.num_attention_heads * c.head_dim, key = c.num_key_value_heads * c.head_dim;
  const bool all_kept = std::all_of(method.layers.begin(), method.layers.end(), [](const auto& layer) { return layer.attention; });
  Index numbers = 3 * c.hidden_size + 2 * c.intermediate_size + query + 2 * key + (all_kept ? 0 : query);
  if (method.has_adapters) numbers += c.hidden_size;
  constexpr Index kSum = 4;
  const Index chunk = peft::LinearCrossEntropy<float>::chunk_rows(pass.tokens, c.vocab_size, pass.logit_bytes);
  const bool narrow = method.trains_head && pass.number_bytes != kSum;
  const Index logits = chunk * (c.vocab_size + c.hidden_size) * (kSum + (narrow ? pass.number_bytes : 0));
  // A block of packed rows per thread: of 16-bit results all columns, else no more than stays in a cache.
  constexpr Index kPacked = 640 << 10, kOther = 96 << 10, kBlockRows = 256;
  Index packed = kBlockRows * std::max(c.intermediate_size, c.hidden_size) * kSum;
  if (pass.number_bytes == kSum) packed = std::min(packed, kPacked);
  return rows * (numbers * pass.number_bytes + method.scratch) + logits + pass.threads * (packed + kOther);
}

/// Values of the trained parameters and their gradients, and of the frozen ones; copies: of the trained values once more (the best
/// ones so far).
inline Index parameter_bytes(const LlamaMethodMemory& method, Index copies = 0) noexcept {
  constexpr Index kSum = 4;
  return (method.parameter_count() * (2 + copies) + method.frozen) * kSum;
}

/// The optimizer's state as AdamW lays it out: all of it, and of a paged one the least that must be in memory.
struct OptimizerBytes {
  Index total = 0, least = 0;
};
inline OptimizerBytes optimizer_bytes(const LlamaMethodMemory& method, bool in_8bit, Index min_8bit_size) {
  using Memory = peft::MomentsMemory<float>;
  std::vector<Memory::Place> places;
  for (const Index size : method.parameters) places.push_back({"", 1, size, size, in_8bit && size >= min_8bit_size});
  return {static_cast<Index>(Memory::total_bytes(places)), static_cast<Index>(Memory::least_budget(places))};
}

/// Bytes of a model's weights as `storage` keeps them. file_bytes(name, shape): of a tensor as its file has it.
template <class FileBytes>
Index weight_bytes(const LlamaConfig& c, const WeightStorage& storage, Index number_bytes, FileBytes&& file_bytes) {
  Index sum = 0;
  for_each_llama_tensor(c, [&](const std::string& name, const std::vector<Index>& shape) {
    const Index count = shape.size() == 2 ? shape[0] * shape[1] : shape[0];
    if (shape.size() != 2) {
      sum += count * Index{4};
    } else if (storage.kind == WeightStorage::Kind::kInt8 && is_layer_weight(name, shape)) {
      sum += count + 4 * shape[0];
    } else if (storage.quantizes() && is_layer_weight(name, shape)) {
      const Index blocks = (count + storage.block_size - 1) / storage.block_size;
      constexpr Index kMap = 256, kNested = 256;
      sum += (count + 1) / 2 + (storage.double_quant ? blocks + 4 * (kMap + (blocks + kNested - 1) / kNested) : 4 * blocks);
    } else {
      sum += storage.keeps_file() || storage.quantizes() ? file_bytes(name, shape) : count * number_bytes;
    }
  });
  return sum;
}
/// The same of a model's files.
inline Index weight_bytes(const ModelSource& source, const WeightStorage& storage, Index number_bytes) {
  return weight_bytes(source.config, storage, number_bytes, [&](const std::string& name, const std::vector<Index>&) {
    if (const auto packed = source.four_bit.find(name); packed != source.four_bit.end()) {
      return std::visit(
          [](const auto& tensor) {
            const peft::FourBitStorage& s = tensor.storage();
            return s.codes.size + s.nested_codes.size + 4 * (s.absmax.size + s.nested_map.size + s.nested_absmax.size);
          },
          packed->second);
    }
    return static_cast<Index>(source.tensor(name).bytes.size());
  });
}
/// The same of a shape, in a file of bf16.
inline Index weight_bytes(const LlamaConfig& config, const WeightStorage& storage, Index number_bytes) {
  return weight_bytes(config, storage, number_bytes, [](const std::string&, const std::vector<Index>& shape) { return 2 * shape[0] * shape[1]; });
}

}  // namespace peft_examples
