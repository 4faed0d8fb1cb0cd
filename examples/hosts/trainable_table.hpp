#pragma once
/// An embedding table of a host's base that can be trained.

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "hosts/llama_weights.hpp"
#include "hosts/names.hpp"
#include "peft/ops/embedding.hpp"
#include "peft/parameter.hpp"

namespace peft_examples {

template <Scalar T>
class TrainableTable {
 public:
  using A = Accumulator<T>;

  /// table [rows, hidden]. `padding`: the row that has no gradient, as torch's padding_idx; -1: none.
  TrainableTable(std::string name, SharedMatrix<T> table, Index padding = -1)
      : name_(std::move(name)), table_(std::move(table)), padding_(padding) {}

  const std::string& name() const noexcept { return name_; }
  MatrixView<const T> view() const noexcept { return table_.view; }
  Index parameter_count() const noexcept { return table_.view.rows * table_.view.cols; }
  bool is_trained() const noexcept { return !grad_.empty(); }

  /// wanted(name) says whether "….weight" is trained; then it is copied into memory of its own.
  template <class Wanted>
  void train(Wanted&& wanted) {
    grad_ = {};
    if (!wanted(std::string_view(name_ + ".weight"))) return;
    grad_ = Matrix<A>::zeros(table_.view.rows, table_.view.cols);
    if (own_ != nullptr) return;
    own_ = std::make_shared<Matrix<T>>(table_.view.rows, table_.view.cols);
    for (Index i = 0; i < own_->rows(); ++i) std::copy_n(table_.view.row(i), own_->cols(), own_->row(i));
    table_ = SharedMatrix<T>(std::as_const(*own_).view(), own_);
  }

  /// x [ids, hidden] is overwritten.
  void forward(VectorView<const std::int32_t> ids, MatrixView<T> x, ExecutorRef executor) const {
    peft::ops::embedding_forward<T, T>(ids, table_.view, x, executor);
  }
  void backward(VectorView<const std::int32_t> ids, MatrixView<const T> dx, ExecutorRef executor) {
    if (!is_trained()) return;
    peft::ops::embedding_backward<T>(ids, dx, grad_.view(), executor);
    if (padding_ >= 0 && padding_ < grad_.rows()) std::fill_n(grad_.row(padding_), grad_.cols(), A(0));
  }

  /// What is trained; see parameter.hpp. Only where T is its own accumulator.
  template <class Visitor>
  void for_each_parameter(Visitor&& visit) {
    if constexpr (std::is_same_v<T, A>) {
      if (!is_trained()) return;
      const std::string full = name_ + ".weight";
      visit(peft::ParameterInfo{full, peft::ParameterRole::kOther, true, own_->rows(), own_->cols()}, own_->flat(),
            grad_.flat());
    }
  }

 private:
  std::string name_;
  SharedMatrix<T> table_;
  std::shared_ptr<Matrix<T>> own_;
  Matrix<A> grad_;
  Index padding_;
};

}  // namespace peft_examples
