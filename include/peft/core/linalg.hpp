#pragma once
/// Decompositions, by Eigen in double: X = U·diag(S)·Vᵀ and X = Q·R. Only initialisers and merges include this. Results are
/// deterministic for one build; signs of singular vectors are Eigen's, so compare products, not factors.

#include <cstdint>

#include "peft/core/buffer.hpp"
#include "peft/core/separate.hpp"

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

/// The first k singular values and vectors.
PEFT_SEPARABLE Svd svd(MatrixView<const double> x, Index k);

/// The same by `iterations` subspace iterations from a random start (Halko, Martinsson, Tropp, "Finding structure with
/// randomness", 2011, algorithm 4.4): for a large X and a small k. Numbers depend on (seed, stream) only.
PEFT_SEPARABLE Svd svd_lowrank(MatrixView<const double> x, Index k, Index iterations, std::uint64_t seed,
                               std::uint64_t stream);

/// The thin Q·R of Householder reflections.
PEFT_SEPARABLE Qr qr(MatrixView<const double> x);

}  // namespace linalg
PEFT_END_NAMESPACE

#if PEFT_DEFINES_SEPARABLE
#include "peft/core/linalg_eigen.hpp"
#endif
