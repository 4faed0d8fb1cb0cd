#pragma once
/// LoRA written out in double, and how far a float result may be from it.

#include <cmath>
#include <cstdint>
#include <vector>

#include "peft/core/buffer.hpp"
#include "peft/core/rng.hpp"
#include "support/catch.hpp"

namespace peft_test {

using peft::Index;
using peft::Matrix;
using peft::MatrixView;

/// Standard normal numbers times `deviation`, rounded to T.
template <class T>
Matrix<T> random_matrix(Index rows, Index cols, std::uint64_t seed, float deviation = 1.0f) {
  peft::Philox random(seed);
  Matrix<T> result(rows, cols);
  for (T& value : result.flat()) value = static_cast<T>(deviation * random.normal());
  return result;
}

template <class T>
Matrix<double> to_double(MatrixView<const T> view) {
  Matrix<double> result(view.rows, view.cols);
  for (Index i = 0; i < view.rows; ++i) {
    for (Index j = 0; j < view.cols; ++j) {
      result(i, j) = static_cast<double>(static_cast<peft::Accumulator<T>>(view(i, j)));
    }
  }
  return result;
}
template <class T>
Matrix<double> to_double(const Matrix<T>& matrix) {
  return to_double<T>(matrix.view());
}

/// A result and, per element, the same sums over absolute values: rounding errors are a multiple of those.
struct Measured {
  Matrix<double> value;
  Matrix<double> magnitude;
  Measured(Index rows, Index cols)
      : value(Matrix<double>::zeros(rows, cols)), magnitude(Matrix<double>::zeros(rows, cols)) {}
  void add(Index i, Index j, double term, double size) {
    value(i, j) += term;
    magnitude(i, j) += size;
  }
};

/// X·op(Y) with magnitudes: op(Y) = Yᵀ or Y; X optionally transposed.
inline Measured product(const Matrix<double>& x, bool x_transposed, const Matrix<double>& y, bool y_transposed,
                        double scale = 1.0) {
  const Index rows = x_transposed ? x.cols() : x.rows();
  const Index inner = x_transposed ? x.rows() : x.cols();
  const Index cols = y_transposed ? y.rows() : y.cols();
  Measured result(rows, cols);
  for (Index i = 0; i < rows; ++i) {
    for (Index j = 0; j < cols; ++j) {
      for (Index k = 0; k < inner; ++k) {
        const double term = scale * (x_transposed ? x(k, i) : x(i, k)) * (y_transposed ? y(j, k) : y(k, j));
        result.add(i, j, term, std::abs(term));
      }
    }
  }
  return result;
}

inline Matrix<double> absolute(const Matrix<double>& matrix) {
  Matrix<double> result(matrix.rows(), matrix.cols());
  for (Index i = 0; i < matrix.size(); ++i) result.data()[i] = std::abs(matrix.data()[i]);
  return result;
}

inline void accumulate(Measured& into, const Measured& from) {
  for (Index i = 0; i < into.value.size(); ++i) {
    into.value.data()[i] += from.value.data()[i];
    into.magnitude.data()[i] += from.magnitude.data()[i];
  }
}

/// The whole layer. `keep` [n, in] holds the mask's factors (0 or 1/(1-p)); all ones where there is no dropout.
struct LoraCase {
  Matrix<double> w, a, b, x, dy, keep;
  std::vector<double> bias;
  double scale = 1;
};

struct LoraResult {
  Measured y, dx, da, db;
};

inline LoraResult lora_reference(const LoraCase& c) {
  Matrix<double> dropped(c.x.rows(), c.x.cols());
  for (Index i = 0; i < dropped.size(); ++i) dropped.data()[i] = c.x.data()[i] * c.keep.data()[i];
  // The magnitude of a product of products is the product of the magnitudes.
  const auto chain = [](const Measured& inner, const Matrix<double>& outer, bool transposed, double scale) {
    Measured result = product(inner.value, false, outer, transposed, scale);
    Measured sizes = product(inner.magnitude, false, absolute(outer), transposed, std::abs(scale));
    result.magnitude = std::move(sizes.value);
    return result;
  };
  const Measured s = product(dropped, false, c.a, true);
  const Measured ds = product(c.dy, false, c.b, false, c.scale);
  Measured y = product(c.x, false, c.w, true);
  accumulate(y, chain(s, c.b, true, c.scale));
  for (Index i = 0; i < y.value.rows(); ++i) {
    for (Index j = 0; j < y.value.cols() && !c.bias.empty(); ++j) {
      const double bias = c.bias[static_cast<std::size_t>(j)];
      y.add(i, j, bias, std::abs(bias));
    }
  }
  Measured low = chain(ds, c.a, false, 1.0);
  for (Index i = 0; i < low.value.size(); ++i) {
    low.value.data()[i] *= c.keep.data()[i];
    low.magnitude.data()[i] *= c.keep.data()[i];
  }
  Measured dx = product(c.dy, false, c.w, false);
  accumulate(dx, low);
  Measured da = product(ds.value, true, dropped, false);
  da.magnitude = product(ds.magnitude, true, absolute(dropped), false).value;
  Measured db = product(c.dy, true, s.value, false, c.scale);
  db.magnitude = product(absolute(c.dy), true, s.magnitude, false, std::abs(c.scale)).value;
  return {std::move(y), std::move(dx), std::move(da), std::move(db)};
}

/// Unit roundoff of a stored type.
template <class T>
double unit_roundoff() {
  if constexpr (std::is_same_v<T, double>) return 0x1p-53;
  if constexpr (std::is_same_v<T, peft::bf16>) return 0x1p-8;
  if constexpr (std::is_same_v<T, peft::f16>) return 0x1p-11;
  return 0x1p-24;
}

/// A sum of `length` products in float differs from the exact one by at most length·u·Σ|terms| (Higham, "Accuracy and
/// Stability of Numerical Algorithms", 3.1); storing the result as T adds u_T·|result| (two roundings where a base
/// rounds before the terms are added), and 2^-24 for f16's subnormals.
template <class T>
void check_close(MatrixView<const T> got, const Measured& want, Index length) {
  REQUIRE(got.rows == want.value.rows());
  REQUIRE(got.cols == want.value.cols());
  using A = peft::Accumulator<T>;
  const double stored = std::is_same_v<T, A> ? 0.0 : 2 * unit_roundoff<T>();
  for (Index i = 0; i < got.rows; ++i) {
    for (Index j = 0; j < got.cols; ++j) {
      const double magnitude = want.magnitude(i, j);
      const double tolerance = static_cast<double>(length + 4) * unit_roundoff<A>() * magnitude + stored * magnitude +
                               (std::is_same_v<T, peft::f16> ? 0x1p-24 : 0.0);
      const double error = std::abs(static_cast<double>(static_cast<A>(got(i, j))) - want.value(i, j));
      if (!(error <= tolerance)) {
        CAPTURE(i, j, error, tolerance, want.value(i, j));
        FAIL("too far from the reference");
      }
    }
  }
}

}  // namespace peft_test
