#pragma once
/// The part of a head whose weight is the embedding's table, where that table is trained as a whole (full fine-tuning of a
/// model with tied embeddings):
///   z = h·Tᵀ instead of the base's;   T [vocabulary, n] is the trained table. dT += dzᵀ·h, beside what the embedding adds.

#include <memory>
#include <string_view>
#include <utility>

#include "peft/dense_linear.hpp"
#include "peft/error.hpp"
#include "peft/trained_matrix.hpp"
#include "peft/update_pass.hpp"

PEFT_BEGIN_NAMESPACE

/// The table is a TrainedEmbedding's, which visits it: here it is no parameter.
template <Scalar T = float>
class TiedEmbedding {
 public:
  using value_type = T;
  using accumulator_type = Accumulator<T>;
  using A = accumulator_type;

  /// Throws ShapeError unless the table is [out_features, in_features].
  TiedEmbedding(Index in_features, Index out_features, std::shared_ptr<TrainedMatrix<A>> table) : table_(std::move(table)) {
    const Matrix<A>& value = std::as_const(*table_).value();
    if (value.rows() != out_features || value.cols() != in_features) {
      fail<ShapeError>("TiedEmbedding: the table is [{}, {}]; expected [{}, {}], the head's", value.rows(), value.cols(),
                       out_features, in_features);
    }
    layer_ = std::make_unique<AnyLinear<T>>(DenseLinear<A>(value.view(), table_));
  }

  Index in_features() const noexcept { return std::as_const(*table_).value().cols(); }
  Index out_features() const noexcept { return std::as_const(*table_).value().rows(); }
  template <class Visitor>
  void for_each_parameter(Visitor&&, std::string_view = {}) {}
  void zero_grad() noexcept {}

  // What a pass asks for; see linear_update.hpp.
  const AnyLinear<T>* replacement() const noexcept { return layer_.get(); }
  void backward_replacement(MatrixView<const T> dy, MatrixView<const T> x, double weight, ExecutorRef executor) {
    detail::add_weight_gradient<T>(dy, x, static_cast<A>(weight), table_->grad().view(), executor);
  }

 private:
  std::shared_ptr<TrainedMatrix<A>> table_;
  std::unique_ptr<AnyLinear<T>> layer_;
};

PEFT_END_NAMESPACE
