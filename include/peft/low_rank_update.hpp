#pragma once
/// Updates whose factors are made from parameters: A [R,in] and B [out,R] stand for ΔW = scale·B·A, and gradients of the
/// factors are pulled back to the parameters. An empty A is the identity (R = in): S is x̃ itself.
///   S = x̃·Aᵀ,  dS = scale·dy·B,  dB += scale·dyᵀ·S,  dA += dSᵀ·x̃

#include <concepts>
#include <vector>

#include "peft/core/buffer.hpp"
#include "peft/kernels/gemm.hpp"
#include "peft/low_rank_factors.hpp"
#include "peft/low_rank_product.hpp"
#include "peft/update_saved.hpp"

PEFT_BEGIN_NAMESPACE

/// The factors of one module's update.
template <class A>
struct Factors {
  MatrixView<const A> a;  ///< [R, in]; empty: the identity
  MatrixView<const A> b;  ///< [out, R]
  A scale = 1;
};

/// A method that is made of factors:
///   make_factors(a, b)      writes what it has to make (what it has already, it leaves)
///   factors(a, b)           the factors, given those
///   pull_back(a, b, da, db) adds to its gradients, given those of the factors (da empty for the identity)
template <class U, class T>
concept FactoredUpdate = requires(U& u, const U& c, Matrix<Accumulator<T>>& m, const Matrix<Accumulator<T>>& k) {
  { c.rank() } -> std::convertible_to<Index>;
  c.make_factors(m, m);
  { c.factors(k, k) } -> std::same_as<Factors<Accumulator<T>>>;
  u.pull_back(k, k, k, k);
};

namespace detail {

/// From this rank on the matrix product is faster than the skinny ones.
inline constexpr Index kWideRank = 64;

/// Reads a float operand panel by panel where the driver does not pack it directly.
inline void fill_from_operand(const void* context, Index n0, Index nc, Index k0, Index kc, float* panel, Index ld) {
  const auto& operand = *static_cast<const kernels::Operand*>(context);
  for (Index i = 0; i < kc; ++i) {
    for (Index j = 0; j < nc; ++j) {
      const Index place = operand.transposed ? (n0 + j) * operand.stride + k0 + i : (k0 + i) * operand.stride + n0 + j;
      switch (operand.type) {
        case DType::kF16:
          panel[i * ld + j] = static_cast<float>(static_cast<const f16*>(operand.data)[place]);
          break;
        case DType::kBF16:
          panel[i * ld + j] = static_cast<float>(static_cast<const bf16*>(operand.data)[place]);
          break;
        default:
          panel[i * ld + j] = static_cast<const float*>(operand.data)[place];
      }
    }
  }
}

/// C [m,n] (+)= left [m,k] · right [k,n].
inline void plain_product(const kernels::Operand& left, const kernels::Operand& right, Index k, MatrixView<float> c,
                          bool accumulate, ExecutorRef executor) {
  if (c.empty()) return;
  kernels::GemmProblem problem;
  problem.m = c.rows;
  problem.n = c.cols;
  problem.k = k;
  problem.a = left;
  problem.b = {&right, fill_from_operand, right};
  problem.accumulate = accumulate;
  problem.c = c.data;
  problem.c_stride = c.stride;
  kernels::gemm(problem, executor);
}

/// dW [out, in] += factor·dyᵀ·x. The memory of dW is contiguous.
template <Scalar T>
void add_weight_gradient(MatrixView<const T> dy, MatrixView<const T> x, Accumulator<T> factor,
                         MatrixView<Accumulator<T>> dw, ExecutorRef executor) {
  using A = Accumulator<T>;
  if (dy.rows == 0) return;
  if constexpr (std::same_as<T, double>) {
    for (Index j = 0; j < dy.cols; ++j) {
      for (Index k = 0; k < x.cols; ++k) {
        double sum = 0;
        for (Index i = 0; i < dy.rows; ++i) sum += dy(i, j) * x(i, k);
        dw(j, k) += factor * sum;
      }
    }
  } else if (factor == A(1)) {
    plain_product(operand_of<T>(dy, true), operand_of<T>(x), dy.rows, dw, true, executor);
  } else {
    Matrix<A> step(dw.rows, dw.cols);
    plain_product(operand_of<T>(dy, true), operand_of<T>(x), dy.rows, step.view(), false, executor);
    kernels::table().axpy(step.size(), factor, step.data(), dw.data);
  }
}

/// S = x̃·Aᵀ, or x̃ where A is the identity.
template <Scalar T>
void project_any(MatrixView<const T> x, const kernels::MaskBits& mask, MatrixView<const Accumulator<T>> a,
                 MatrixView<Accumulator<T>> s, ExecutorRef executor) {
  using A = Accumulator<T>;
  const bool wide = s.cols >= kWideRank && !std::same_as<T, double>;
  if (!a.empty() && !wide) {
    project<T>(x, mask, a, s, executor);
    return;
  }
  Matrix<A> copy;
  MatrixView<A> dropped = s;
  if (!a.empty()) {
    copy.resize_discard(x.rows, x.cols);
    dropped = copy.view();
  }
  if (a.empty() || mask.bits != nullptr || !std::same_as<T, float>) {
    parallel_for_ranges(executor, x.rows, 8, [&](Index first, Index last) {
      for (Index i = first; i < last; ++i) {
        for (Index k = 0; k < x.cols; ++k) {
          dropped(i, k) = static_cast<A>(mask_factor(mask, i, k)) * static_cast<A>(x(i, k));
        }
      }
    });
    if (a.empty()) return;
  }
  if constexpr (!std::same_as<T, double>) {
    const bool direct = mask.bits == nullptr && std::same_as<T, float>;
    const kernels::Operand left = direct ? operand_of<T>(x) : operand_of<float>(MatrixView<const float>(dropped));
    plain_product(left, operand_of<float>(a, true), x.cols, s, false, executor);
  }
}

/// dS = scale·dy·B.
template <Scalar T>
void project_gradient_any(MatrixView<const T> dy, MatrixView<const Accumulator<T>> b, Accumulator<T> scale,
                          MatrixView<Accumulator<T>> ds, ExecutorRef executor) {
  if constexpr (!std::same_as<T, double>) {
    if (ds.cols >= kWideRank) {
      plain_product(operand_of<T>(dy), operand_of<float>(b), dy.cols, ds, false, executor);
      for (Index i = 0; i < ds.rows; ++i) kernels::table().scale(ds.cols, scale, ds.row(i));
      return;
    }
  }
  project_gradient<T>(dy, b, scale, ds, executor);
}

/// dB [out,R] = scale·dyᵀ·S, overwritten.
template <Scalar T>
void factor_gradient_b(MatrixView<const T> dy, MatrixView<const Accumulator<T>> s, Accumulator<T> scale,
                       MatrixView<Accumulator<T>> db, ExecutorRef executor) {
  if constexpr (!std::same_as<T, double>) {
    if (db.cols >= kWideRank && dy.rows > 0) {
      plain_product(operand_of<T>(dy, true), operand_of<float>(s), dy.rows, db, false, executor);
      for (Index j = 0; j < db.rows; ++j) kernels::table().scale(db.cols, scale, db.row(j));
      return;
    }
  }
  for (Index j = 0; j < db.rows; ++j) std::fill_n(db.row(j), db.cols, Accumulator<T>(0));
  gradient_b<T>(dy, s, scale, db, executor);
}

/// forward_terms of a FactoredUpdate.
template <Scalar T, FactoredUpdate<T> U>
void factored_forward(const U& update, MatrixView<const T> x, const kernels::MaskBits& mask, double weight,
                      UpdateSaved<T>& saved, std::vector<BasicLowRankTerm<Accumulator<T>>>& terms,
                      ExecutorRef executor) {
  using A = Accumulator<T>;
  if (update.rank() == 0) return;  // AdaLoRA may leave a module without columns
  update.make_factors(saved.a, saved.b);
  const Factors<A> f = update.factors(std::as_const(saved.a), std::as_const(saved.b));
  saved.s.resize_discard(x.rows, update.rank());
  project_any<T>(x, mask, f.a, saved.s.view(), executor);
  terms.push_back({0, x.rows, std::as_const(saved.s).view(), f.b, static_cast<A>(f.scale * static_cast<A>(weight))});
}

/// backward_terms of a FactoredUpdate; ds [n, R]; `identity` [in, in] is not made: a term without A adds dS itself.
template <Scalar T, FactoredUpdate<T> U>
void factored_backward(U& update, MatrixView<const T> dy, MatrixView<const T> x, const kernels::MaskBits& mask,
                       double weight, const UpdateSaved<T>& saved, MatrixView<Accumulator<T>> ds,
                       std::vector<BasicInputGradTerm<Accumulator<T>>>& terms, ExecutorRef executor) {
  using A = Accumulator<T>;
  if (update.rank() == 0) return;
  const Factors<A> f = update.factors(saved.a, saved.b);
  const A scale = f.scale * static_cast<A>(weight);
  Matrix<A> db(dy.cols, ds.cols), da;
  factor_gradient_b<T>(dy, saved.s.view(), scale, db.view(), executor);
  project_gradient_any<T>(dy, f.b, scale, ds, executor);
  if (!f.a.empty()) {
    da = Matrix<A>::zeros(ds.cols, x.cols);
    gradient_a<T>(ds, x, mask, da.view(), executor);
  }
  update.pull_back(saved.a, saved.b, std::as_const(da), std::as_const(db));
  terms.push_back({ds, f.a, mask});
}

}  // namespace detail
PEFT_END_NAMESPACE
