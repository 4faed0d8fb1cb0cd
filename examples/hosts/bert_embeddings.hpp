#pragma once
/// The input of a BERT's first layer: x [tokens, hidden] = dropout(norm(word + type + position)), in which a prompt's rows
/// stand in the place of words. Adapters attach to the three tables and the norm by Hugging Face's names.

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "hosts/bert_config.hpp"
#include "hosts/bert_norm.hpp"
#include "hosts/bert_virtual_tokens.hpp"
#include "hosts/bert_weights.hpp"
#include "hosts/names.hpp"
#include "peft/adapted_embedding.hpp"
#include "peft/ops/add.hpp"
#include "peft/train/batch.hpp"

namespace peft_examples {

template <Scalar T>
class BertEmbeddings {
 public:
  using A = Accumulator<T>;
  using Table = peft::AdaptedEmbedding<T>;

  /// Takes the tables and the norm out of `weights`. `path` stands before every name: "bert.". Throws ShapeError.
  BertEmbeddings(const BertConfig& config, BertWeights<T>& weights, const std::string& path)
      : words_(table(path + "embeddings.word_embeddings", weights.word_embeddings, config.vocab_size, config.hidden_size)),
        positions_(table(path + "embeddings.position_embeddings", weights.position_embeddings,
                         config.max_position_embeddings, config.hidden_size)),
        types_(table(path + "embeddings.token_type_embeddings", weights.token_type_embeddings, config.type_vocab_size,
                     config.hidden_size)),
        norm_(path + "embeddings.LayerNorm", std::move(weights.embedding_norm.weight),
              std::move(weights.embedding_norm.bias), config.layer_norm_eps),
        padding_(static_cast<std::int32_t>(config.pad_token_id)) {}

  std::array<Table*, 3> tables() noexcept { return {&words_, &positions_, &types_}; }
  const Table& words() const noexcept { return words_; }
  BertNorm<T>& norm() noexcept { return norm_; }
  const BertNorm<T>& norm() const noexcept { return norm_; }
  Index parameter_count() const {
    Index count = norm_.parameter_count();
    for (const Table* one : {&words_, &positions_, &types_}) count += one->vocabulary() * one->width();
    return count;
  }
  /// Whether backward has something to add to.
  bool is_trained(const peft::Selection<T>& selection) const {
    return words_.is_trained(selection) || positions_.is_trained(selection) || types_.is_trained(selection) ||
           norm_.is_adapted(selection);
  }

  /// x [tokens, hidden] before its dropout. `batch` is that of virtual_tokens' start().
  void forward(const peft::PackedBatch& batch, const BertVirtualTokens<T>& virtual_tokens, Matrix<T>& x,
               const peft::Selection<T>& selection, ExecutorRef executor) {
    const Index tokens = batch.tokens();
    sum_.resize_discard(tokens, words_.width());
    part_.resize_discard(tokens, words_.width());
    token_types_.assign(static_cast<std::size_t>(tokens), 0);
    words_.forward({batch.ids.data(), tokens}, sum_, selection, executor);
    virtual_tokens.write(batch, sum_);
    types_.forward({token_types_.data(), tokens}, part_, selection, executor);
    peft::ops::add<T>(part_, sum_, executor);
    positions_.forward({batch.positions.data(), tokens}, part_, selection, executor);
    peft::ops::add<T>(part_, sum_, executor);
    norm_.selected(selection).forward(std::as_const(sum_).view(), x, executor);
  }
  /// d holds the gradient of forward's x and receives that of the sum of the three embeddings.
  void backward(const peft::PackedBatch& batch, const BertVirtualTokens<T>& virtual_tokens, Matrix<T>& d,
                const peft::Selection<T>& selection, ExecutorRef executor) {
    const Index tokens = batch.tokens();
    norm_.selected(selection).backward(std::as_const(d).view(), std::as_const(sum_).view(), Accumulate::kOverwrite, d,
                                       executor);
    const MatrixView<const T> d_sum = std::as_const(d).view();
    if (words_.is_trained(selection)) {
      words_.backward({batch.ids.data(), tokens}, of_words(batch, virtual_tokens.rows(), d), selection, executor);
    }
    positions_.backward({batch.positions.data(), tokens}, d_sum, selection, executor);
    types_.backward({token_types_.data(), tokens}, d_sum, selection, executor);
  }

 private:
  static Table table(std::string name, SharedMatrix<T>& weights, Index rows, Index cols) {
    if (weights.view.rows != rows || weights.view.cols != cols) {
      peft::fail<peft::ShapeError>("Bert: {} is [{}, {}]; expected [{}, {}]", name, weights.view.rows, weights.view.cols, rows,
                                   cols);
    }
    return Table(std::move(name), weights.view, std::move(weights.owner));
  }
  /// The words' share of the gradient: none at virtual rows, nor, as torch's padding_idx, at the padding's.
  MatrixView<const T> of_words(const peft::PackedBatch& batch, Index virtual_rows, const Matrix<T>& d) {
    if (virtual_rows == 0 && std::find(batch.ids.begin(), batch.ids.end(), padding_) == batch.ids.end()) return d.view();
    std::copy_n(d.data(), d.size(), part_.data());
    const auto clear = [&](Index row) { std::fill_n(part_.row(row), part_.cols(), T(0.0f)); };
    for (Index i = 0; i < batch.tokens(); ++i) {
      if (batch.ids[static_cast<std::size_t>(i)] == padding_) clear(i);
    }
    for (Index s = 0; s < batch.sequences(); ++s) {
      for (Index j = 0; j < virtual_rows; ++j) clear(batch.offsets[static_cast<std::size_t>(s)] + j);
    }
    return std::as_const(part_).view();
  }

  Table words_, positions_, types_;
  BertNorm<T> norm_;
  std::int32_t padding_;
  // Memory that is kept from step to step.
  std::vector<std::int32_t> token_types_;
  Matrix<T> sum_, part_;
};

}  // namespace peft_examples
