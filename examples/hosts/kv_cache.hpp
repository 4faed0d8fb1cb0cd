#pragma once
/// Keys and values of a sequence that a Llama host has read, and of what stands before it.

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "hosts/llama_config.hpp"
#include "hosts/names.hpp"
#include "peft/kv_cache_like.hpp"

namespace peft_examples {

/// Keys and values that stand before sequences, as views: of a trained prefix (peft::PrefixCache), or of a prompt that the
/// host has read once (KvCache). Any number of sequences share one; nothing is copied.
template <Scalar T>
class KvPrefix {
 public:
  using value_type = T;

  template <peft::KvCacheLike C>
    requires std::same_as<typename C::value_type, T>
  explicit KvPrefix(std::shared_ptr<const C> cache) {
    for (Index l = 0; l < cache->layers(); ++l) {
      keys_.push_back(cache->keys(l));
      values_.push_back(cache->values(l));
    }
    owner_ = std::move(cache);
  }
  Index layers() const noexcept { return static_cast<Index>(keys_.size()); }
  Index length() const noexcept { return keys_.front().rows; }
  MatrixView<const T> keys(Index layer) const noexcept { return keys_[static_cast<std::size_t>(layer)]; }
  MatrixView<const T> values(Index layer) const noexcept { return values_[static_cast<std::size_t>(layer)]; }

 private:
  std::vector<MatrixView<const T>> keys_, values_;
  std::shared_ptr<const void> owner_;
};

/// Keys (rotated) and values of one sequence, for every layer: [capacity, key/value heads × head_dim] each, of which the
/// first length() rows are filled. They stand behind those of the prefix, which count in no size here.
template <Scalar T>
class KvCache {
 public:
  using value_type = T;
  using Prefix = std::shared_ptr<const KvPrefix<T>>;

  /// `prefix` may be null.
  KvCache(const LlamaConfig& config, Index capacity, Prefix prefix = nullptr)
      : capacity_(capacity), prefix_(std::move(prefix)) {
    const Index width = config.num_key_value_heads * config.head_dim;
    ids_.reserve(static_cast<std::size_t>(capacity));
    for (Index i = 0; i < config.num_hidden_layers; ++i) layers_.push_back({Matrix<T>(capacity, width), Matrix<T>(capacity, width)});
  }
  Index layers() const noexcept { return static_cast<Index>(layers_.size()); }
  Index length() const noexcept { return layers_.back().filled; }
  Index capacity() const noexcept { return capacity_; }
  MatrixView<const T> keys(Index layer) const noexcept { return rows(layer, &Layer::keys); }
  MatrixView<const T> values(Index layer) const noexcept { return rows(layer, &Layer::values); }
  const KvPrefix<T>* prefix() const noexcept { return prefix_.get(); }
  /// Position of the next token.
  Index next_position() const noexcept { return (prefix_ ? prefix_->length() : 0) + length(); }

  /// Appends rows to one layer; a token is read when the last layer has it. Throws ShapeError where they do not fit.
  void write(Index layer, MatrixView<const T> keys, MatrixView<const T> values) {
    Layer& l = layers_[static_cast<std::size_t>(layer)];
    const Index width = l.keys.cols();
    if (keys.cols != width || values.cols != width || values.rows != keys.rows || l.filled + keys.rows > capacity_) {
      peft::fail<peft::ShapeError>("KvCache::write: [{}, {}] keys and [{}, {}] values behind {} rows; expected at most {} "
                                   "rows of {}",
                                   keys.rows, keys.cols, values.rows, values.cols, l.filled, capacity_ - l.filled, width);
    }
    for (Index j = 0; j < keys.rows; ++j) {
      std::copy_n(keys.row(j), width, l.keys.row(l.filled + j));
      std::copy_n(values.row(j), width, l.values.row(l.filled + j));
    }
    l.filled += keys.rows;
  }
  /// Notes ids that are about to be read; ids(): all so far. An aLoRA acts from where some of them stand.
  void note(VectorView<const std::int32_t> ids) {
    ids_.resize(static_cast<std::size_t>(length()), -1);  // what a pass that failed had noted, or nobody
    ids_.insert(ids_.end(), ids.begin(), ids.end());
  }
  std::span<const std::int32_t> ids() const noexcept { return ids_; }
  /// Forgets all tokens but the first `length` (which must be there): the next one takes the place behind them.
  void rewind(Index length) noexcept {
    for (Layer& layer : layers_) layer.filled = length;
  }

 private:
  struct Layer {
    Matrix<T> keys, values;
    Index filled = 0;
  };
  MatrixView<const T> rows(Index layer, Matrix<T> Layer::*part) const noexcept {
    const Layer& l = layers_[static_cast<std::size_t>(layer)];
    return (l.*part).view().row_range(0, l.filled);
  }

  Index capacity_;
  Prefix prefix_;
  std::vector<Layer> layers_;
  std::vector<std::int32_t> ids_;
};

}  // namespace peft_examples
