#pragma once
/// Prefix tuning: trained keys and values that stand before every sequence, in every layer, in the host's key/value cache:
///   out_i = Σ_j softmax_j(scale · q_i·[P_K; K]_j) [P_V; V]_j;   P_K, P_V [n, kv_heads·head_dim] per layer
/// Keys enter the cache after the rotary embedding and are not rotated; the sequence's own tokens begin at position n.
/// One row holds a virtual token's numbers of all layers, [n, layers·2·token_dim] = view [n, 2·layers, kv_heads, head_dim]:
/// index 2l is K of layer l, 2l+1 its V, as Python PEFT saves them; keys(l) and values(l) are views into it.
/// Gradient: what attention's backward adds to grad_keys(l) and grad_values(l). With prefix_projection an MLP makes the
/// rows while they are trained (encoders/prefix_encoder.hpp).
/// Li and Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", 2021 (arXiv 2101.00190).

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <utility>

#include "peft/core/buffer.hpp"
#include "peft/core/parallel.hpp"
#include "peft/core/rng.hpp"
#include "peft/encoders/encoded_rows.hpp"
#include "peft/encoders/prefix_encoder.hpp"
#include "peft/error.hpp"
#include "peft/kv_cache_like.hpp"
#include "peft/parameter.hpp"
#include "peft/prefix_config.hpp"

PEFT_BEGIN_NAMESPACE

/// A trained prefix; models KvCacheLike. T is the activation type; parameters and gradients are float (double for double).
/// Reading (keys, values) is const and may run in any number of threads; encode, backward and the visitor may not run
/// beside it. Where parameters changed, call encode() before reading: it costs nothing without an encoder for float.
template <Scalar T = float>
class PrefixCache {
 public:
  using value_type = T;
  using accumulator_type = Accumulator<T>;

  /// n rows for a model of these sizes, all zero, trained themselves. Throws ConfigError for sizes below 1.
  PrefixCache(Index num_virtual_tokens, Index layers, Index kv_heads, Index head_dim)
      : PrefixCache(PrefixTuningConfig{.num_virtual_tokens = num_virtual_tokens,
                                       .token_dim = kv_heads * head_dim,
                                       .num_layers = layers,
                                       .num_attention_heads = kv_heads,
                                       .init_weights = "zero"}) {}
  /// As PEFT's PrefixEncoder starts: rows standard normal, or of an MLP where prefix_projection is set and inference_mode
  /// is not; zero where init_weights says so. Numbers depend on `seed` only. Throws ConfigError, also where a size is
  /// open (PrefixTuningConfig::fit_to).
  explicit PrefixCache(PrefixTuningConfig config, std::uint64_t seed = 0)
      : config_(std::move(config)), rows_(make_rows(config_)), trainable_(!config_.inference_mode) {
    const bool zero = config_.init_weights.has_value();
    if (makes_encoder(config_)) {
      const Index hidden = config_.encoder_hidden_size > 0 ? config_.encoder_hidden_size : config_.token_dim;
      encoders::PrefixEncoder<accumulator_type> encoder(config_.num_virtual_tokens, config_.token_dim, hidden,
                                                        config_.num_layers * 2 * config_.token_dim);
      encoder.reset(seed, zero);
      rows_ = Rows(std::move(encoder));
    } else if (!zero) {
      Philox random(seed, 0);
      const MatrixView<accumulator_type> rows = rows_.parameter();
      for (Index i = 0; i < rows.rows; ++i) {
        for (Index j = 0; j < rows.cols; ++j) rows(i, j) = static_cast<accumulator_type>(random.normal());
      }
    }
    rows_.encode(nullptr, ExecutorRef());
  }

  const PrefixTuningConfig& config() const noexcept { return config_; }
  Index num_virtual_tokens() const noexcept { return config_.num_virtual_tokens; }
  Index kv_heads() const noexcept { return config_.num_attention_heads; }
  Index head_dim() const noexcept { return config_.token_dim / config_.num_attention_heads; }
  /// Width of a key: kv_heads · head_dim.
  Index token_dim() const noexcept { return config_.token_dim; }
  /// Throws ShapeError unless layers, key/value heads and head_dim are the host's, naming both.
  void require_host(const PromptHost& host) const { (void)config_.fit_to(host); }

  // -- KvCacheLike ---------------------------------------------------------------------------------------------------
  Index layers() const noexcept { return config_.num_layers; }
  Index length() const noexcept { return config_.num_virtual_tokens; }
  /// [n, kv_heads·head_dim] of layer `layer`, a view.
  MatrixView<const T> keys(Index layer) const noexcept { return part(rows_.view(), 2 * layer); }
  MatrixView<const T> values(Index layer) const noexcept { return part(rows_.view(), 2 * layer + 1); }

  // -- training ------------------------------------------------------------------------------------------------------
  /// Whether it is trained: its parameters are visited. Starts as !inference_mode.
  bool is_trainable() const noexcept { return trainable_; }
  /// Throws ConfigError for a prefix whose MLP was not saved: its rows can be used, not trained as they were.
  void set_trainable(bool trainable) {
    if (trainable && config_.prefix_projection && !rows_.has_encoder()) {
      fail<ConfigError>("PrefixCache::set_trainable: prefix_projection is set and the MLP that made the rows is not here: "
                        "PEFT's files do not hold it; go on from the train state, or set prefix_projection to false");
    }
    trainable_ = trainable;
  }
  /// Brings keys and values up to the parameters. Before every pass of a training.
  void encode(ExecutorRef executor = default_executor()) { rows_.encode(nullptr, executor); }
  /// Whether parameters were visited, or gradients made, since encode().
  bool is_stale() const noexcept { return rows_.is_stale(); }
  /// Where attention's backward adds the gradients of keys(layer) and values(layer).
  MatrixView<accumulator_type> grad_keys(Index layer) { return part(rows_.grad(), 2 * layer); }
  MatrixView<accumulator_type> grad_values(Index layer) { return part(rows_.grad(), 2 * layer + 1); }
  /// After all layers added theirs: takes them through the MLP, where there is one.
  void backward(ExecutorRef executor = default_executor()) { rows_.backward(executor); }
  void zero_grad() noexcept { rows_.zero_grad(); }
  /// Visits "prompt_embeddings" [n, layers·2·token_dim], or the MLP's parameters under PEFT's names
  /// ("prompt_encoder.embedding.weight", "prompt_encoder.transform.0.weight", …); see parameter.hpp.
  template <class Visitor>
  void for_each_parameter(Visitor&& visit, std::string_view prefix = {}) {
    rows_.for_each_parameter(visit, prefix);
  }

  // -- from and to other memory ----------------------------------------------------------------------------------------
  /// The flattened rows [n, layers·2·token_dim], as PEFT saves them.
  MatrixView<const accumulator_type> prompt_embeddings() const noexcept { return rows_.wide(); }
  /// Sets them. Throws ShapeError; ConfigError where an MLP makes them.
  void set_prompt_embeddings(MatrixView<const accumulator_type> rows) {
    require_own_rows("PrefixCache::set_prompt_embeddings");
    const MatrixView<accumulator_type> own = rows_.parameter();
    if (rows.rows != own.rows || rows.cols != own.cols) {
      fail<ShapeError>("PrefixCache::set_prompt_embeddings: the rows are [{}, {}]; expected [{}, {}]: virtual tokens, "
                       "layers·2·token_dim",
                       rows.rows, rows.cols, own.rows, own.cols);
    }
    for (Index i = 0; i < own.rows; ++i) std::copy_n(rows.row(i), own.cols, own.row(i));
    rows_.encode(nullptr, ExecutorRef());
  }
  /// Starts from the activations of a real text: rows [first, first + n) of a cache that the host filled by reading it.
  /// Its keys are rotated as they stand there, and stay so: with first = 0 a sequence behind the prefix sees exactly what
  /// it would see behind the text. Throws ShapeError for a cache of other sizes or too few rows; ConfigError where an MLP
  /// makes the rows.
  template <KvCacheLike C>
  void assign(const C& cache, Index first = 0) {
    require_own_rows("PrefixCache::assign");
    const Index n = num_virtual_tokens();
    if (cache.layers() != layers() || first < 0 || first + n > cache.length()) {
      fail<ShapeError>("PrefixCache::assign: the cache has {} layers and {} rows; expected {} layers and at least {} rows "
                       "from row {}",
                       Index{cache.layers()}, Index{cache.length()}, layers(), n, first);
    }
    using V = typename C::value_type;
    for (Index l = 0; l < layers(); ++l) {
      check_width("PrefixCache::assign", MatrixView<const V>(cache.keys(l)).cols);
      check_width("PrefixCache::assign", MatrixView<const V>(cache.values(l)).cols);
    }
    const auto copy = [&](MatrixView<const V> from, MatrixView<accumulator_type> to) {
      for (Index i = 0; i < n; ++i) {
        for (Index j = 0; j < to.cols; ++j) {
          to(i, j) = static_cast<accumulator_type>(static_cast<Accumulator<V>>(from(first + i, j)));
        }
      }
    };
    const MatrixView<accumulator_type> rows = rows_.parameter();
    for (Index l = 0; l < layers(); ++l) {
      copy(cache.keys(l), part(rows, 2 * l));
      copy(cache.values(l), part(rows, 2 * l + 1));
    }
    rows_.encode(nullptr, ExecutorRef());
  }
  /// Writes the prefix into a host's cache, for attention that reads its keys from one place only. Throws ShapeError for
  /// another number of layers.
  template <class C>
    requires WritableKvCache<C, T>
  void write_to(C& cache) const {
    if (cache.layers() != layers()) {
      fail<ShapeError>("PrefixCache::write_to: the cache has {} layers; expected {}, the prefix's", Index{cache.layers()},
                       layers());
    }
    for (Index l = 0; l < layers(); ++l) cache.write(l, keys(l), values(l));
  }

 private:
  using Rows = encoders::EncodedRows<T, encoders::PrefixEncoder<accumulator_type>>;

  static bool makes_encoder(const PrefixTuningConfig& config) noexcept {
    return config.prefix_projection && !config.inference_mode;
  }
  static Rows make_rows(const PrefixTuningConfig& config) {
    config.validate();
    detail::require_set("PrefixCache", "token_dim", config.token_dim);
    detail::require_set("PrefixCache", "num_layers", config.num_layers);
    detail::require_set("PrefixCache", "num_attention_heads", config.num_attention_heads);
    return Rows(config.num_virtual_tokens, config.num_layers * 2 * config.token_dim);
  }
  template <class V>
  MatrixView<V> part(MatrixView<V> rows, Index index) const noexcept {
    return rows.column_range(index * config_.token_dim, config_.token_dim);
  }
  void check_width(std::string_view who, Index width) const {
    if (width != token_dim()) {
      fail<ShapeError>("{}: the cache's keys are {} wide; expected {}, the prefix's {} key/value heads of {}", who, width,
                       token_dim(), kv_heads(), head_dim());
    }
  }
  void require_own_rows(std::string_view who) const {
    if (rows_.has_encoder()) {
      fail<ConfigError>("{}: an MLP makes the rows (prefix_projection); it has no inverse; expected prefix_projection = "
                        "false, or inference_mode",
                        who);
    }
  }

  PrefixTuningConfig config_;
  Rows rows_;
  bool trainable_;
};

PEFT_END_NAMESPACE
