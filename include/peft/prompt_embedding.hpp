#pragma once
/// Prompt tuning: learned vectors before the input embeddings of every sequence:
///   x = [P; embed(ids)];   P [n, hidden], positions 0…n−1 for its rows, n… for the tokens; no label on its rows
/// Gradient: dP = the sum over the sequences of dx's first n rows. P-tuning trains an encoder that makes P
/// (encoders/prompt_encoder.hpp); the files hold P in both cases.
/// Lester et al., "The Power of Scale for Parameter-Efficient Prompt Tuning", 2021 (arXiv 2104.08691); Liu et al., "GPT
/// Understands, Too", 2021 (arXiv 2103.10385).

#include <algorithm>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "peft/core/buffer.hpp"
#include "peft/core/parallel.hpp"
#include "peft/core/rng.hpp"
#include "peft/encoders/encoded_rows.hpp"
#include "peft/encoders/prompt_encoder.hpp"
#include "peft/error.hpp"
#include "peft/ops/embedding.hpp"
#include "peft/parameter.hpp"
#include "peft/prompt_config.hpp"
#include "peft/prompt_encoder_config.hpp"
#include "peft/row_table.hpp"

PEFT_BEGIN_NAMESPACE

/// Token ids as a text's start takes them: cut to `count`, or the whole list over and over until there are as many.
/// Throws ConfigError for an empty list.
inline std::vector<std::int32_t> fit_token_ids(std::span<const std::int32_t> ids, Index count) {
  if (ids.empty()) fail<ConfigError>("fit_token_ids: the text has no tokens; expected at least 1");
  std::vector<std::int32_t> result;
  for (Index i = 0; i < count; ++i) result.push_back(ids[static_cast<std::size_t>(i) % ids.size()]);
  return result;
}

/// Learned vectors. T is the activation type; parameters and gradients are float (double for double). Reading (rows) is
/// const and may run in any number of threads; encode, backward and the visitor may not run beside it.
template <Scalar T = float>
class PromptEmbedding {
 public:
  using value_type = T;
  using accumulator_type = Accumulator<T>;
  using Config = std::variant<PromptTuningConfig, PromptEncoderConfig>;

  /// n vectors, all zero. Throws ConfigError for sizes below 1.
  PromptEmbedding(Index num_virtual_tokens, Index token_dim)
      : PromptEmbedding(PromptTuningConfig{.num_virtual_tokens = num_virtual_tokens, .token_dim = token_dim}, Zero{}) {}
  /// Prompt tuning, started at random as PEFT does, or zero for inference_mode (set_prompt_embeddings follows). Throws
  /// ConfigError where prompt_tuning_init asks for another start, or a size is open (PromptTuningConfig::fit_to).
  explicit PromptEmbedding(PromptTuningConfig config, std::uint64_t seed = 0) : PromptEmbedding(std::move(config), Zero{}) {
    const auto& own = std::get<PromptTuningConfig>(config_);
    if (own.inference_mode) return;
    if (own.prompt_tuning_init != PromptTuningInit::kRandom) {
      fail<ConfigError>("PromptEmbedding: prompt_tuning_init asks for the model's embeddings; pass them, and for TEXT the "
                        "text's token ids");
    }
    fill_normal(seed);
  }
  /// Prompt tuning as `config.prompt_tuning_init` says. word_embeddings [vocabulary, token_dim]; text_ids: the tokens of
  /// prompt_tuning_init_text, used for TEXT. Throws ConfigError; ShapeError for a table of another width or an id outside
  /// of it.
  template <class W>
  PromptEmbedding(PromptTuningConfig config, MatrixView<const W> word_embeddings,
                  std::span<const std::int32_t> text_ids = {}, std::uint64_t seed = 0)
      : PromptEmbedding(std::move(config), Zero{}) {
    start(word_embeddings.rows, word_embeddings, text_ids, seed);
  }
  /// The same out of a table that stays as it is stored.
  PromptEmbedding(PromptTuningConfig config, const RowTable<T>& word_embeddings, std::span<const std::int32_t> text_ids = {},
                  std::uint64_t seed = 0)
      : PromptEmbedding(std::move(config), Zero{}) {
    start(word_embeddings.rows(), word_embeddings, text_ids, seed);
  }
  /// P-tuning: started as PEFT's PromptEncoder; for inference_mode no encoder is made. Throws ConfigError.
  explicit PromptEmbedding(PromptEncoderConfig config, std::uint64_t seed = 0)
      : config_(config), rows_(make_rows(config)), trainable_(!config.inference_mode) {
    if (!config.inference_mode) {
      if (config.encoder_hidden_size == 0) config.encoder_hidden_size = config.token_dim;
      encoders::PromptEncoder<accumulator_type> encoder(config);
      encoder.reset(seed);
      rows_ = Rows(std::move(encoder));
    }
    rows_.encode(nullptr, ExecutorRef());
  }

  const Config& config() const noexcept { return config_; }
  Index num_virtual_tokens() const noexcept { return rows_.wide().rows; }
  Index token_dim() const noexcept { return rows_.wide().cols; }
  /// Throws ShapeError unless the vectors are as wide as the host's embeddings, naming both.
  void require_host(const PromptHost& host) const {
    std::visit([&](const auto& config) { (void)config.fit_to(host); }, config_);
  }

  /// P [n, token_dim].
  MatrixView<const T> rows() const noexcept { return rows_.view(); }
  /// Copies P to the first rows of a sequence, x [n, token_dim]. Throws ShapeError.
  void write(MatrixView<T> x) const {
    check("PromptEmbedding::write", x.rows, x.cols);
    for (Index i = 0; i < x.rows; ++i) std::copy_n(rows().row(i), x.cols, x.row(i));
  }

  // -- training ------------------------------------------------------------------------------------------------------
  /// Whether it is trained: its parameters are visited. Starts as !inference_mode.
  bool is_trainable() const noexcept { return trainable_; }
  /// Throws ConfigError for P-tuning whose encoder was not saved.
  void set_trainable(bool trainable) {
    if (trainable && std::holds_alternative<PromptEncoderConfig>(config_) && !rows_.has_encoder()) {
      fail<ConfigError>("PromptEmbedding::set_trainable: the encoder that made the vectors is not here: PEFT's files do not "
                        "hold it; go on from the train state, or train the vectors themselves by prompt tuning");
    }
    trainable_ = trainable;
  }
  /// Brings the rows up to the parameters. Before every pass of a training; `dropout`: the step's key for the LSTM's
  /// encoder_dropout, or nullptr in evaluation.
  void encode(const DropoutKey* dropout = nullptr, ExecutorRef executor = default_executor()) {
    rows_.encode(dropout, executor);
  }
  /// Whether parameters were visited, or gradients made, since encode().
  bool is_stale() const noexcept { return rows_.is_stale(); }
  /// Adds the gradient of one sequence's first rows, dx [n, token_dim]. Throws ShapeError.
  void add_gradient(MatrixView<const T> dx) {
    check("PromptEmbedding::add_gradient", dx.rows, dx.cols);
    const MatrixView<accumulator_type> grad = rows_.grad();
    for (Index i = 0; i < dx.rows; ++i) {
      for (Index j = 0; j < dx.cols; ++j) grad(i, j) += static_cast<accumulator_type>(dx(i, j));
    }
  }
  /// After all sequences added theirs: takes them through the encoder, where there is one.
  void backward(ExecutorRef executor = default_executor()) { rows_.backward(executor); }
  void zero_grad() noexcept { rows_.zero_grad(); }
  /// Visits "prompt_embeddings" [n, token_dim], or the encoder's parameters under PEFT's names
  /// ("prompt_encoder.embedding.weight", "prompt_encoder.mlp_head.0.weight", …); see parameter.hpp.
  template <class Visitor>
  void for_each_parameter(Visitor&& visit, std::string_view prefix = {}) {
    rows_.for_each_parameter(visit, prefix);
  }

  /// P, as PEFT saves it.
  MatrixView<const accumulator_type> prompt_embeddings() const noexcept { return rows_.wide(); }
  /// Sets P. Throws ShapeError; ConfigError where an encoder makes it.
  void set_prompt_embeddings(MatrixView<const accumulator_type> rows) {
    require_own_rows("PromptEmbedding::set_prompt_embeddings");
    check("PromptEmbedding::set_prompt_embeddings", rows.rows, rows.cols);
    const MatrixView<accumulator_type> own = rows_.parameter();
    for (Index i = 0; i < own.rows; ++i) std::copy_n(rows.row(i), own.cols, own.row(i));
    rows_.encode(nullptr, ExecutorRef());
  }
  /// Sets P to the embeddings of `ids`, one per virtual token. Throws ShapeError; ConfigError where an encoder makes it.
  void set_from_tokens(std::span<const std::int32_t> ids, const RowTable<T>& word_embeddings) {
    check_ids(ids);
    const VectorView<const std::int32_t> view{ids.data(), num_virtual_tokens()};
    ops::detail::check_shape("PromptEmbedding::set_from_tokens", "word_embeddings", rows_.parameter(), num_virtual_tokens(),
                             word_embeddings.cols());
    ops::detail::check_ids("PromptEmbedding::set_from_tokens", view, word_embeddings.rows());
    for (Index i = 0; i < view.size; ++i) word_embeddings.read_row(view[i], rows_.parameter().row(i));
    rows_.encode(nullptr, ExecutorRef());
  }
  template <class W>
  void set_from_tokens(std::span<const std::int32_t> ids, MatrixView<const W> word_embeddings) {
    check_ids(ids);
    ops::embedding_forward<W, accumulator_type>({ids.data(), num_virtual_tokens()}, word_embeddings, rows_.parameter(),
                                                ExecutorRef());
    rows_.encode(nullptr, ExecutorRef());
  }

 private:
  using Rows = encoders::EncodedRows<T, encoders::PromptEncoder<accumulator_type>>;
  struct Zero {};

  PromptEmbedding(PromptTuningConfig config, Zero)
      : config_(config), rows_(make_rows(config)), trainable_(!config.inference_mode) {
    rows_.encode(nullptr, ExecutorRef());
  }
  template <class C>
  static Rows make_rows(const C& config) {
    config.validate();
    detail::require_set("PromptEmbedding", "token_dim", config.token_dim);
    return Rows(config.num_virtual_tokens, config.token_dim);
  }
  /// As prompt_tuning_init says, out of `vocabulary` embeddings.
  template <class Words>
  void start(Index vocabulary, const Words& word_embeddings, std::span<const std::int32_t> text_ids, std::uint64_t seed) {
    const auto& own = std::get<PromptTuningConfig>(config_);
    if (own.inference_mode) return;
    if (own.prompt_tuning_init == PromptTuningInit::kRandom) {
      fill_normal(seed);
    } else if (own.prompt_tuning_init == PromptTuningInit::kText) {
      set_from_tokens(fit_token_ids(text_ids, num_virtual_tokens()), word_embeddings);
    } else {
      if (vocabulary < 1) fail<ShapeError>("PromptEmbedding: the word embeddings have no rows");
      Philox random(seed, 0);
      std::vector<std::int32_t> ids;
      for (Index i = 0; i < num_virtual_tokens(); ++i) {
        ids.push_back(static_cast<std::int32_t>(random.below(static_cast<std::uint32_t>(vocabulary))));
      }
      set_from_tokens(ids, word_embeddings);
    }
  }
  void check_ids(std::span<const std::int32_t> ids) const {
    require_own_rows("PromptEmbedding::set_from_tokens");
    if (static_cast<Index>(ids.size()) != num_virtual_tokens()) {
      fail<ShapeError>("PromptEmbedding::set_from_tokens: {} ids; expected {}, one per virtual token", ids.size(),
                       num_virtual_tokens());
    }
  }
  void fill_normal(std::uint64_t seed) {
    Philox random(seed, 0);
    const MatrixView<accumulator_type> own = rows_.parameter();
    for (Index i = 0; i < own.rows; ++i) {
      for (Index j = 0; j < own.cols; ++j) own(i, j) = static_cast<accumulator_type>(random.normal());
    }
    rows_.encode(nullptr, ExecutorRef());
  }
  void check(std::string_view who, Index rows, Index cols) const {
    if (rows != num_virtual_tokens() || cols != token_dim()) {
      fail<ShapeError>("{}: the rows are [{}, {}]; expected [{}, {}]: virtual tokens, token_dim", who, rows, cols,
                       num_virtual_tokens(), token_dim());
    }
  }
  void require_own_rows(std::string_view who) const {
    if (rows_.has_encoder()) {
      fail<ConfigError>("{}: an encoder makes the vectors (P-tuning); it has no inverse; expected prompt tuning, or "
                        "inference_mode",
                        who);
    }
  }

  Config config_;
  Rows rows_;
  bool trainable_;
};

PEFT_END_NAMESPACE
