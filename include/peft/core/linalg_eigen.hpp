#pragma once
/// linalg.hpp's functions, by Eigen: seconds of compiling, which PEFT_SEPARATE_IMPLEMENTATION pays once.

#include "peft/core/separate.hpp"

#if PEFT_DEFINES_SEPARABLE
#include "peft/core/eigen.hpp"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wsign-conversion"
#pragma GCC diagnostic ignored "-Wshadow"
#include <Eigen/QR>
#include <Eigen/SVD>
#pragma GCC diagnostic pop

#include <algorithm>

#include "peft/core/linalg.hpp"
#include "peft/core/rng.hpp"

PEFT_BEGIN_NAMESPACE
namespace linalg {

namespace detail {

inline Matrix<double> from_eigen(const EigenMatrix<double>& x) {
  Matrix<double> result(x.rows(), x.cols());
  std::copy_n(x.data(), x.size(), result.data());
  return result;
}

}  // namespace detail

PEFT_SEPARABLE Svd svd(MatrixView<const double> x, Index k) {
  const Eigen::BDCSVD<EigenMatrix<double>> solved(as_eigen(x), Eigen::ComputeThinU | Eigen::ComputeThinV);
  k = std::min<Index>(k, std::min(x.rows, x.cols));
  Svd result;
  result.u = detail::from_eigen(solved.matrixU().leftCols(k));
  result.s = Buffer<double>(k);
  for (Index i = 0; i < k; ++i) result.s[i] = solved.singularValues()(i);
  result.vt = detail::from_eigen(solved.matrixV().leftCols(k).transpose());
  return result;
}

PEFT_SEPARABLE Svd svd_lowrank(MatrixView<const double> x, Index k, Index iterations, std::uint64_t seed,
                               std::uint64_t stream) {
  const auto matrix = as_eigen(x);
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
  const EigenMatrix<double> inside = q.transpose() * matrix;
  Svd small = svd(view_of(inside), k);
  const EigenMatrix<double> u = q * as_eigen(MatrixView<const double>(small.u.view()));
  small.u = detail::from_eigen(u);
  return small;
}

PEFT_SEPARABLE Qr qr(MatrixView<const double> x) {
  const Index k = std::min(x.rows, x.cols);
  const Eigen::HouseholderQR<EigenMatrix<double>> solved(as_eigen(x));
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
#endif
