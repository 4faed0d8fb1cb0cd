#pragma once
/// A pass with one method over any base, for the method's own forward and backward.

#include <string_view>
#include <utility>
#include <vector>

#include "peft/update_pass.hpp"

PEFT_BEGIN_NAMESPACE
namespace detail {

/// y = base(x) with the method; `saved` and `pass`, where given, get what backward_one needs.
template <Scalar T, class U, LinearLike<T> L>
void forward_one(const L& base, const U& method, MatrixView<const T> x, MatrixView<T> y, UpdateSaved<T>* saved,
                 PassSaved<T>* pass, const DropoutMask& dropout, std::string_view who, ExecutorRef executor) {
  check_shape(who, "x", x, x.rows, method.in_features());
  check_shape(who, "y", y, x.rows, method.out_features());
  const AnyLinear<T> any = AnyLinear<T>::borrow(const_cast<L&>(base));
  BorrowedUpdate<U, T> update(const_cast<U&>(method));  // forward reads it only
  const ActiveUpdate<T> active{&update, 1.0, dropout, {}};
  std::vector<UpdateSaved<T>> saves(1);
  PassSaved<T> own;
  if (saved != nullptr) std::swap(saves[0], *saved);
  UpdatePass<T>(any, std::span(&active, 1), who, executor)
      .forward(x, y, saves, pass != nullptr ? *pass : own, pass != nullptr);
  if (saved != nullptr) std::swap(saves[0], *saved);
}
template <Scalar T, class U, LinearLike<T> L>
void backward_one(const L& base, U& method, MatrixView<const T> dy, MatrixView<const T> x, UpdateSaved<T>& saved,
                  const PassSaved<T>& pass, MatrixView<T> dx, Accumulate mode, std::string_view who,
                  ExecutorRef executor) {
  check_shape(who, "x", x, x.rows, method.in_features());
  check_shape(who, "dy", dy, x.rows, method.out_features());
  const AnyLinear<T> any = AnyLinear<T>::borrow(const_cast<L&>(base));
  BorrowedUpdate<U, T> update(method);
  const ActiveUpdate<T> active{&update, 1.0, saved.dropout, {}};
  std::vector<UpdateSaved<T>> saves(1);
  std::swap(saves[0], saved);
  UpdatePass<T>(any, std::span(&active, 1), who, executor).backward(dy, x, saves, pass, dx, mode);
  std::swap(saves[0], saved);
}

}  // namespace detail
PEFT_END_NAMESPACE
