#pragma once
/// Views ↔ Eigen without copies: as_eigen(view) maps a view, view_of(object) makes a view of a matrix, block or map
/// whose rows are contiguous. The memory's owner must outlive both.

// Eigen's own headers do not pass -Wconversion, -Wsign-conversion and -Wshadow, and pkg-config gives their folder as one
// of the user's, not the system's.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wsign-conversion"
#pragma GCC diagnostic ignored "-Wshadow"
#include <Eigen/Core>
#pragma GCC diagnostic pop

#include <type_traits>

#include "peft/core/view.hpp"

PEFT_BEGIN_NAMESPACE

/// Row-major, any size.
template <class T>
using EigenMatrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <class T>
using EigenVector = Eigen::Matrix<T, Eigen::Dynamic, 1>;

/// What as_eigen gives: rows `stride` elements apart, no alignment assumed (consumers' flags change Eigen's).
template <class T>
using EigenMap = Eigen::Map<std::conditional_t<std::is_const_v<T>, const EigenMatrix<std::remove_const_t<T>>,
                                               EigenMatrix<std::remove_const_t<T>>>,
                            Eigen::Unaligned, Eigen::OuterStride<>>;
template <class T>
using EigenVectorMap = Eigen::Map<std::conditional_t<std::is_const_v<T>, const EigenVector<std::remove_const_t<T>>,
                                                     EigenVector<std::remove_const_t<T>>>>;

template <class T>
EigenMap<T> as_eigen(MatrixView<T> view) {
  return EigenMap<T>(view.data, view.rows, view.cols, Eigen::OuterStride<>(view.stride));
}
template <class T>
EigenVectorMap<T> as_eigen(VectorView<T> view) {
  return EigenVectorMap<T>(view.data, view.size);
}

namespace detail {
/// The element type of an Eigen object, const where it cannot be written.
template <class D>
using EigenElement = std::conditional_t<std::is_const_v<D> || !(D::Flags & Eigen::LvalueBit), const typename D::Scalar,
                                        typename D::Scalar>;
}  // namespace detail

/// A view of a row-major Eigen matrix, block, map or Ref with contiguous rows: one with another layout does not
/// compile.
template <class D>
  requires std::is_base_of_v<Eigen::DenseBase<std::remove_const_t<D>>, std::remove_const_t<D>>
MatrixView<detail::EigenElement<D>> view_of(D& object) {
  static_assert(bool(D::Flags & Eigen::DirectAccessBit),
                "peft::view_of: the Eigen object has no memory; evaluate it first");
  static_assert(bool(D::IsRowMajor), "peft::view_of: views are row-major; declare the matrix with Eigen::RowMajor");
  static_assert(int(D::InnerStrideAtCompileTime) == 1, "peft::view_of: the elements of a row must be contiguous");
  return {object.data(), object.rows(), object.cols(), object.outerStride()};
}

PEFT_END_NAMESPACE
