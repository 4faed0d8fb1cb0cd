#pragma once
/// What a Llama host's layers keep between forward and backward.
/// In bf16 where that was asked for: half the memory of float. Forward is as without; backward sees activations that are
/// rounded to eight bits of mantissa.
/// Checkpointed where that was asked for: each layer's input alone (Chen et al., "Training Deep Nets with Sublinear Memory
/// Cost", 2016, arXiv 1604.06174). All layers share one layer's memory, and backward makes a layer's activations there
/// again, the same bits. In bf16 they are made of a rounded input.

#include <array>
#include <cstddef>
#include <type_traits>
#include <utility>
#include <vector>

#include "hosts/llama_config.hpp"
#include "hosts/llama_layer.hpp"
#include "hosts/names.hpp"
#include "peft/core/parallel.hpp"
#include "peft/kernels/convert.hpp"

namespace peft_examples {

/// The activations of all layers: each layer's input x and LlamaSaved. As computed, every layer has memory of its own; with
/// rounding the layers share one layer's, which put() empties into bf16 and get() fills again; checkpointed, they share it,
/// and the caller fills it again where is_gone() says so.
template <Scalar T>
class LlamaStored {
 public:
  /// kF32: as computed. Throws ConfigError for another type, or where T has 16 bits already.
  void set_type(peft::DType type) {
    if (type != peft::DType::kF32 && type != peft::DType::kBF16) {
      peft::fail<peft::ConfigError>("Llama: saved activations of {}; expected f32 or bf16", peft::name_of(type));
    }
    if (type == peft::DType::kBF16 && sizeof(T) == 2) {
      peft::fail<peft::ConfigError>("Llama: saved activations of bf16, and the activations have 16 bits already; leave it out");
    }
    rounds_ = type == peft::DType::kBF16;
    clear();
  }
  void set_checkpointing(bool on) noexcept {
    checkpoints_ = on;
    clear();
  }

  /// Memory for a batch of so many rows. made_again(i): before layer i's backward the caller writes input(i) anew, from what
  /// the layer below keeps; those inputs share the memory of two. Not with rounding, where all do, nor checkpointed, where the
  /// layer below keeps nothing.
  template <class MadeAgain>
  void resize(const LlamaConfig& config, Index rows, MadeAgain&& made_again) {
    count_ = config.num_hidden_layers;
    const auto layers = static_cast<std::size_t>(count_);
    held_ = kNone;
    layers_.resize(checkpoints_ ? 1 : layers);
    if (rounds_) rounded_.resize(layers);
    inputs_.resize(layers + 1);
    pair_.resize(2);
    made_again_.assign(layers + 1, false);
    for (std::size_t i = 1; i <= layers && !rounds_ && !checkpoints_; ++i) made_again_[i] = made_again(static_cast<Index>(i));
    for (Index i = 0; i <= count_; ++i) {
      Matrix<T>& own = inputs_[static_cast<std::size_t>(i)];
      own.resize_discard(shares_memory(i) ? 0 : rows, config.hidden_size);
      if (shares_memory(i)) pair_[static_cast<std::size_t>(i % 2)].resize_discard(rows, config.hidden_size);
    }
  }

  /// The input of layer i; of the number of layers: the last one's output. Where memory is shared, of neighbours two are
  /// there at a time.
  Matrix<T>& input(Index i) noexcept {
    return shares_memory(i) ? pair_[static_cast<std::size_t>(i % 2)] : inputs_[static_cast<std::size_t>(i)];
  }
  const Matrix<T>& output() noexcept { return input(count_); }
  bool is_made_again(Index i) const noexcept { return made_again_[static_cast<std::size_t>(i)]; }
  /// What layer i keeps, as it is.
  LlamaSaved<T>& layer(Index i) noexcept { return layers_[checkpoints_ ? 0 : static_cast<std::size_t>(i)]; }

  /// What layer i keeps, before its forward.
  LlamaSaved<T>& begin(Index i) noexcept {
    held_ = i;
    if (swaps()) swap_activations(layer(i), shared_);
    return layer(i);
  }
  /// After its forward.
  void put(Index i, ExecutorRef executor) {
    if (!rounds_) return;
    auto to = rounded_[static_cast<std::size_t>(i)].begin();
    convert(input(i), *to++, executor);
    if (!swaps()) return;
    for_each_activation(layer(i), [&](const Matrix<T>& from) { convert(from, *to++, executor); });
    swap_activations(layer(i), shared_);
  }
  /// Whether the shared memory is another layer's by now: after get() the caller runs layer i's forward again.
  bool is_gone(Index i) const noexcept { return checkpoints_ && held_ != i; }
  /// The same layer for its backward, input(i) included; done() gives it back.
  LlamaSaved<T>& get(Index i, ExecutorRef executor) {
    if (!rounds_ || (checkpoints_ && held_ == i)) return layer(i);
    auto from = rounded_[static_cast<std::size_t>(i)].begin();
    convert(*from++, input(i), executor);
    if (!swaps()) return layer(i);
    swap_activations(layer(i), shared_);
    for_each_activation(layer(i), [&](Matrix<T>& to) { convert(*from++, to, executor); });
    return layer(i);
  }
  void done(Index i) noexcept {
    held_ = kNone;
    if (swaps()) swap_activations(layer(i), shared_);
  }

  /// Bytes of inputs and activations, without what adapters keep.
  Index bytes() {
    Index count = 0, rounded = 0;
    for (const auto& x : inputs_) count += x.size();
    for (const auto& x : pair_) count += x.size();
    for (auto& layer : layers_) for_each_activation(layer, [&](const Matrix<T>& x) { count += x.size(); });
    for_each_activation(shared_, [&](const Matrix<T>& x) { count += x.size(); });
    for (const auto& layer : rounded_) {
      for (const auto& x : layer) rounded += x.size();
    }
    return count * static_cast<Index>(sizeof(T)) + rounded * static_cast<Index>(sizeof(peft::bf16));
  }

 private:
  static constexpr std::size_t kActivations = 9;
  static constexpr Index kNone = -1;
  using Rounded = std::array<Matrix<peft::bf16>, 1 + kActivations>;  // the input first

  template <class Visitor>
  static void for_each_activation(LlamaSaved<T>& s, Visitor&& visit) {
    for (Matrix<T>* x : {&s.q, &s.k, &s.v, &s.a, &s.m, &s.gate, &s.up, &s.unnormed_q, &s.unnormed_k}) visit(*x);
  }
  static void swap_activations(LlamaSaved<T>& x, LlamaSaved<T>& y) noexcept {
    Matrix<T>* from[] = {&x.q, &x.k, &x.v, &x.a, &x.m, &x.gate, &x.up, &x.unnormed_q, &x.unnormed_k};
    std::size_t i = 0;
    for_each_activation(y, [&](Matrix<T>& to) { std::swap(*from[i++], to); });
  }

  template <class From, class To>
  static void convert(const Matrix<From>& from, Matrix<To>& to, ExecutorRef executor) {
    to.resize_discard(from.rows(), from.cols());
    constexpr Index kRows = 64;
    peft::parallel_for_ranges(executor, from.rows(), kRows, [&](Index first, Index last) {
      const Index begin = first * from.cols(), count = (last - first) * from.cols();
      if constexpr (std::is_same_v<T, double>) {
        for (Index i = begin; i < begin + count; ++i) to.data()[i] = static_cast<To>(static_cast<float>(from.data()[i]));
      } else {
        peft::kernels::convert(count, from.data() + begin, peft::dtype_of<From>(), to.data() + begin, peft::dtype_of<To>());
      }
    });
  }

  void clear() noexcept {
    inputs_.clear();
    pair_.clear();
    layers_.clear();
    rounded_.clear();
    shared_ = {};
  }
  /// Whether a layer's activations go into bf16, and their memory to the next layer.
  bool swaps() const noexcept { return rounds_ && !checkpoints_; }
  bool shares_memory(Index i) const noexcept { return rounds_ || is_made_again(i); }

  bool rounds_ = false, checkpoints_ = false;
  Index count_ = 0;
  Index held_ = kNone;  // the layer whose activations the shared memory has
  std::vector<bool> made_again_;
  std::vector<Matrix<T>> inputs_, pair_;
  std::vector<LlamaSaved<T>> layers_;
  std::vector<Rounded> rounded_;
  LlamaSaved<T> shared_;
};

}  // namespace peft_examples
