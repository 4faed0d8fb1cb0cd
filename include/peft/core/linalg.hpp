#pragma once
/// Decompositions, by Eigen in double: X = U·diag(S)·Vᵀ and X = Q·R. Only initialisers and merges include this. Results are
/// deterministic for one build; signs of singular vectors are Eigen's, so compare products, not factors.

#include "peft/core/eigen.hpp"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wsign-conversion"
#pragma GCC diagnostic ignored "-Wshadow"
#include <Eigen/QR>
#include <Eigen/SVD>
#pragma GCC diagnostic pop

#include <algorithm>

#include "peft/core/buffer.hpp"
#include "peft/core/rng.hpp"

PEFT_BEGIN_NAMESPACE
namespace linalg {

/// The thin decomposition; k = min(rows, cols) unless cut.
struct Svd {
  Matrix<double> u;   ///< [rows, k]
  Buffer<double> s;   ///< [k], descending
  Matrix<double> vt;  ///< [k, cols]
};
struct Qr {
  Matrix<double> q;  ///< [rows, k]
  Matrix<double> r;  ///< [k, cols]
};

namespace detail {

template <class A>
EigenMatrix<double> to_eigen(MatrixView<const A> x) {
  EigenMatrix<double> result(x.rows, x.cols);
  for (Index i = 0; i < x.rows; ++i) {
    for (Index j = 0; j < x.cols; ++j) result(i, j) = static_cast<double>(x(i, j));
  }
  return result;
}
inline Matrix<double> from_eigen(const EigenMatrix<double>& x) {
  Matrix<double> result(x.rows(), x.cols());
  std::copy_n(x.data(), x.size(), result.data());
  return result;
}
inline Svd svd(const EigenMatrix<double>& x, Index k) {
  const Eigen::BDCSVD<EigenMatrix<double>> solved(x, Eigen::ComputeThinU | Eigen::ComputeThinV);
  k = std::min<Index>(k, std::min(x.rows(), x.cols()));
  Svd result;
  result.u = from_eigen(solved.matrixU().leftCols(k));
  result.s = Buffer<double>(k);
  for (Index i = 0; i < k; ++i) result.s[i] = solved.singularValues()(i);
  result.vt = from_eigen(solved.matrixV().leftCols(k).transpose());
  return result;
}

}  // namespace detail

/// The first k singular values and vectors.
template <class A>
Svd svd(MatrixView<const A> x, Index k) {
  return detail::svd(detail::to_eigen(x), k);
}

/// The same by `iterations` subspace iterations from a random start (Halko, Martinsson, Tropp, "Finding structure with
/// randomness", 2011, algorithm 4.4): for a large X and a small k. Numbers depend on (seed, stream) only.
template <class A>
Svd svd_lowrank(MatrixView<const A> x, Index k, Index iterations, std::uint64_t seed, std::uint64_t stream) {
  const EigenMatrix<double> matrix = detail::to_eigen(x);
  k = std::min<Index>(k, std::min(x.rows, x.cols));
  EigenMatrix<double> start(x.cols, k);
  Philox random(seed, stream);
  for (Index i = 0; i < start.size(); ++i) start.data()[i] = static_cast<double>(random.normal());
  const auto basis = [](const EigenMatrix<double>& columns) -> EigenMatrix<double> {
    const Eigen::HouseholderQR<EigenMatrix<double>> solved(columns);
    return solved.householderQ() * EigenMatrix<double>::Identity(columns.rows(), columns.cols());
  };
  EigenMatrix<double> q = basis(matrix * start);
  for (Index i = 0; i < iterations; ++i) {
    const EigenMatrix<double> other = basis(matrix.transpose() * q);
    q = basis(matrix * other);
  }
  Svd small = detail::svd(q.transpose() * matrix, k);
  small.u = detail::from_eigen(q * detail::to_eigen(MatrixView<const double>(small.u.view())));
  return small;
}

/// The thin Q·R of Householder reflections.
template <class A>
Qr qr(MatrixView<const A> x) {
  const EigenMatrix<double> matrix = detail::to_eigen(x);
  const Index k = std::min(x.rows, x.cols);
  const Eigen::HouseholderQR<EigenMatrix<double>> solved(matrix);
  Qr result;
  result.q = detail::from_eigen(solved.householderQ() * EigenMatrix<double>::Identity(x.rows, k));
  EigenMatrix<double> upper = solved.matrixQR().topRows(k);
  for (Index i = 0; i < k; ++i) {
    for (Index j = 0; j < std::min<Index>(i, x.cols); ++j) upper(i, j) = 0.0;
  }
  result.r = detail::from_eigen(upper);
  return result;
}

}  // namespace linalg
PEFT_END_NAMESPACE
