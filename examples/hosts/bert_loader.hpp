#pragma once
/// Loads a BERT host from a model's files.

#include <set>
#include <string>
#include <utility>
#include <vector>

#include "hosts/bert.hpp"
#include "hosts/bert_folder.hpp"
#include "hosts/weight_reader.hpp"

namespace peft_examples {

namespace detail {

/// Reads each tensor once and knows which were not asked for.
template <Scalar T>
class BertReader {
 public:
  BertReader(const BertSource& source, ExecutorRef executor) : source_(source), executor_(executor) {}

  SharedMatrix<T> matrix(const std::string& name, Index rows, Index cols) {
    return read_matrix<T>(take(name), rows, cols, 0, executor_);
  }
  Buffer<Accumulator<T>> vector(const std::string& name, Index size) { return read_vector<Accumulator<T>>(take(name), size); }
  BertNormWeights<T> norm(const std::string& name) {
    const Index hidden = source_.config.hidden_size;
    return {vector(name + ".weight", hidden), vector(name + ".bias", hidden)};
  }
  peft::AnyLinear<T> linear(const std::string& name, Index rows, Index cols) {
    const peft::TensorRef& bias = take(name + ".bias");
    return read_linear<T>(take(name + ".weight"), &bias, rows, cols, 0, {}, executor_);
  }
  const peft::TensorRef& take(const std::string& name) {
    taken_.insert(name);
    return source_.tensor(name);
  }
  /// Throws FormatError for a tensor that the host has no place for.
  void finish() const {
    for (const auto& [name, tensor] : source_.tensors) {
      if (taken_.count(name) == 0 && !name.starts_with("classifier.") && !name.starts_with("pooler.")) {
        peft::fail<peft::FormatError>("loading {}: a BERT of this configuration has no place for it", tensor.where());
      }
    }
  }

 private:
  const BertSource& source_;
  ExecutorRef executor_;
  std::set<std::string> taken_;
};

}  // namespace detail

/// Throws FormatError, ShapeError; a tensor that the host has no place for is refused by name. Weights whose stored type is
/// T stay in the mapped files; those must not be cut while the model lives.
template <Scalar T>
BertWeights<T> load_bert_weights(const BertSource& source, ExecutorRef executor = peft::default_executor()) {
  const BertConfig& c = source.config;
  c.validate();
  detail::BertReader<T> read(source, executor);
  const Index hidden = c.hidden_size, inner = c.intermediate_size;
  BertWeights<T> w{read.matrix("embeddings.word_embeddings.weight", c.vocab_size, hidden),
                   read.matrix("embeddings.position_embeddings.weight", c.max_position_embeddings, hidden),
                   read.matrix("embeddings.token_type_embeddings.weight", c.type_vocab_size, hidden),
                   read.norm("embeddings.LayerNorm"),
                   {},
                   {}};
  for (Index i = 0; i < c.num_hidden_layers; ++i) {
    const std::string path = "encoder.layer." + std::to_string(i) + ".", attention = path + "attention.";
    w.layers.push_back({read.linear(attention + "self.query", hidden, hidden),
                        read.linear(attention + "self.key", hidden, hidden),
                        read.linear(attention + "self.value", hidden, hidden),
                        read.linear(attention + "output.dense", hidden, hidden),
                        read.norm(attention + "output.LayerNorm"),
                        read.linear(path + "intermediate.dense", inner, hidden),
                        read.linear(path + "output.dense", hidden, inner),
                        read.norm(path + "output.LayerNorm")});
  }
  if (source.has("pooler.dense.weight")) w.pooler.emplace(read.linear("pooler.dense", hidden, hidden));
  read.finish();
  return w;
}

/// The encoder alone; its linears are named as in BertModel, without "bert.".
template <Scalar T>
BertEncoder<T> load_bert_encoder(const BertSource& source, ExecutorRef executor = peft::default_executor()) {
  BertEncoder<T> encoder(source.config, load_bert_weights<T>(source, executor), "");
  encoder.set_executor(executor);
  return encoder;
}

/// With the file's own head, where it has one, and `classes` is 0 or its number; otherwise with a new head for `classes`,
/// started from `seed`. Throws ConfigError where there is neither.
template <Scalar T>
BertForSequenceClassification<T> load_bert_classifier(const BertSource& source, Index classes, std::uint64_t seed,
                                                      ExecutorRef executor = peft::default_executor()) {
  using A = Accumulator<T>;
  const bool has_head = source.has("classifier.weight");
  const Index own = has_head ? source.tensor("classifier.weight").rows() : 0;
  if (classes < 1 && !has_head) {
    peft::fail<peft::ConfigError>("{}: has no classifier.weight; expected the number of classes for a new head", source.where);
  }
  peft::DenseLinear<T> head = BertForSequenceClassification<T>::make_classifier(std::max<Index>(1, classes),
                                                                                source.config.hidden_size, seed);
  if (has_head && (classes < 1 || classes == own)) {
    const peft::TensorRef& weight = source.tensor("classifier.weight");
    check_shape(weight, {own, source.config.hidden_size});
    Buffer<A> bias = read_vector<A>(source.tensor("classifier.bias"), own);
    head = peft::DenseLinear<T>(detail::copy_matrix<T>(weight, 0, executor), std::move(bias));
  }
  BertForSequenceClassification<T> model(source.config, load_bert_weights<T>(source, executor), std::move(head));
  model.set_executor(executor);
  return model;
}

/// With a new head of AdapterHub's own for `classes`, started from `seed`; heads of the file are not read. Throws ConfigError
/// for a head that is not supported.
template <Scalar T>
BertForSequenceClassification<T> load_bert_classifier(const BertSource& source, const peft::ClassificationHeadConfig& head, Index classes,
                                                      std::uint64_t seed, ExecutorRef executor = peft::default_executor()) {
  BertForSequenceClassification<T> model(source.config, load_bert_weights<T>(source, executor), head, classes, seed);
  model.set_executor(executor);
  return model;
}

}  // namespace peft_examples
