#pragma once
/// A base layer and low-rank terms in one product, whatever the base offers:
///   y  = x·Wᵀ + bias + Σ_t scale_t · S_t·B_tᵀ          x [n,in], S_t [n,r_t], B_t [out,r_t], y [n,out]
///   dx (+)= dy·W + Σ_t mask_t ∘ (dS_t·A_t)             dy [n,out], dS_t [n,r_t], A_t [r_t,in], dx [n,in]
/// Forward, in this order: the base's own forward_low_rank; a panel source: one GEMM with K = in + Σr; otherwise the
/// base's forward, and the terms are added. Backward: a panel source: one GEMM with K = out + Σr; otherwise the base's
/// backward_input, and the terms are added. Double runs plain loops: it is the reference.

#include <array>
#include <concepts>
#include <span>
#include <string_view>
#include <vector>

#include "peft/core/buffer.hpp"
#include "peft/core/rounded.hpp"
#include "peft/error.hpp"
#include "peft/kernels/gemm.hpp"
#include "peft/linear.hpp"

PEFT_BEGIN_NAMESPACE

/// dx += mask ∘ (dS·A).
template <class A>
struct BasicInputGradTerm {
  MatrixView<const A> ds;  ///< [n, r], the scale is in it
  MatrixView<const A> a;   ///< [r, in]; empty: the identity, r = in
  kernels::MaskBits mask{};
};

/// Whether training can run over the base.
template <class L, class T = typename L::value_type>
concept TrainableBase = (PanelSource<L> && !std::same_as<T, double>) || BackwardLinear<L, T> || ExecutorBackward<L, T>;

namespace detail {

/// The base names its storage, so that the GEMM can pack from it without calls of fill_panel.
template <class L>
concept DirectPanels = requires(const L& l, Order order) {
  { l.panel_fill(order) } -> std::convertible_to<kernels::PanelFill>;
};

/// The base takes whole input gradients (AnyLinear, which knows at run time what it holds).
template <class L, class T>
concept FusedInputGrad =
    requires(const L& l, MatrixView<const T> dy, std::span<const BasicInputGradTerm<Accumulator<T>>> terms,
             MatrixView<T> dx, Accumulate mode, ExecutorRef executor) {
      l.backward_low_rank(dy, terms, dx, mode, executor);
    };

template <class L>
kernels::PanelFill panel_fill_of(const L& base, Order order) noexcept {
  if constexpr (DirectPanels<L>) {
    return base.panel_fill(order);
  } else {
    kernels::PanelFill result;
    result.context = &base;
    if (order == Order::kForward) {
      result.fill = [](const void* context, Index n0, Index nc, Index k0, Index kc, float* panel, Index ld) {
        static_cast<const L*>(context)->fill_panel(n0, nc, k0, kc, panel, ld, Order::kForward);
      };
    } else {
      result.fill = [](const void* context, Index n0, Index nc, Index k0, Index kc, float* panel, Index ld) {
        static_cast<const L*>(context)->fill_panel(n0, nc, k0, kc, panel, ld, Order::kBackward);
      };
    }
    return result;
  }
}

/// A list of low-rank columns: on the stack for as many terms as there mostly are.
class ColumnList {
 public:
  void push(const kernels::LowRankColumns& columns) {
    if (count_ < kInline) {
      inline_[count_] = columns;
    } else {
      if (count_ == kInline) heap_.assign(inline_.begin(), inline_.end());
      heap_.push_back(columns);
    }
    ++count_;
  }
  void give_to(kernels::GemmProblem& problem) const noexcept {
    problem.low_rank = count_ <= kInline ? inline_.data() : heap_.data();
    problem.low_rank_count = static_cast<Index>(count_);
  }

 private:
  static constexpr std::size_t kInline = 4;
  std::array<kernels::LowRankColumns, kInline> inline_{};
  std::vector<kernels::LowRankColumns> heap_;
  std::size_t count_ = 0;
};

template <Scalar T>
kernels::Operand operand_of(MatrixView<const T> view, bool transposed = false) noexcept {
  return {view.data, view.stride, dtype_of<T>(), transposed};
}

/// Runs `problem` (its m, a and c stand for all rows) once per run of rows over which the set of terms is the same.
template <Scalar T>
void gemm_with_terms(kernels::GemmProblem problem, MatrixView<const T> x, std::span<const LowRankTerm> terms,
                     MatrixView<T> y, ExecutorRef executor) {
  for (Index first = 0, last = 0; first < y.rows; first = last) {
    last = y.rows;  // or where the next term begins or ends
    for (const LowRankTerm& term : terms) {
      for (const Index edge : {term.first_row, term.first_row + term.rows}) {
        if (edge > first && edge < last) last = edge;
      }
    }
    ColumnList columns;
    for (const LowRankTerm& term : terms) {
      if (term.first_row > first || term.first_row + term.rows < last) continue;
      columns.push({term.s.data + (first - term.first_row) * term.s.stride, term.s.stride, term.s.cols, term.b.data,
                    term.b.stride, true, term.scale});
    }
    columns.give_to(problem);
    if (problem.low_rank_count == 0 && problem.accumulate) continue;
    problem.m = last - first;
    problem.a = operand_of<T>(x.row_range(first, last - first));
    problem.c = y.row(first);
    kernels::gemm(problem, executor);
  }
}

/// y = x·Wᵀ + bias + terms over a panel source.
template <Scalar T, PanelSource L>
void panel_forward(const L& base, MatrixView<const T> x, std::span<const LowRankTerm> terms, MatrixView<T> y,
                   ExecutorRef executor) {
  if (y.empty()) return;
  kernels::GemmProblem problem;
  problem.n = y.cols;
  problem.k = x.cols;
  problem.b = panel_fill_of(base, Order::kForward);
  const VectorView<const float> bias = base.bias();
  problem.bias = bias.empty() ? nullptr : bias.data;
  problem.c_stride = y.stride;
  problem.c_type = dtype_of<T>();
  gemm_with_terms<T>(problem, x, terms, y, executor);
}

/// y += terms, for bases that know nothing of them.
template <Scalar T>
void add_terms(MatrixView<const T> x, std::span<const BasicLowRankTerm<Accumulator<T>>> terms, MatrixView<T> y,
               ExecutorRef executor) {
  if (y.empty() || terms.empty()) return;
  if constexpr (std::same_as<T, double>) {
    for (const auto& term : terms) {
      for (Index i = 0; i < term.rows; ++i) {
        for (Index j = 0; j < y.cols; ++j) {
          double sum = 0;
          for (Index q = 0; q < term.s.cols; ++q) sum += term.s(i, q) * term.b(j, q);
          y(term.first_row + i, j) += term.scale * sum;
        }
      }
    }
  } else {
    kernels::GemmProblem problem;
    problem.n = y.cols;
    problem.accumulate = true;
    problem.c_stride = y.stride;
    problem.c_type = dtype_of<T>();
    gemm_with_terms<T>(problem, x, terms, y, executor);
  }
}

/// 1/(1-p) or 0 where there is a mask, else 1.
inline float mask_factor(const kernels::MaskBits& mask, Index row, Index column) noexcept {
  if (mask.bits == nullptr) return 1.0f;
  return (mask.bits[row * mask.stride_bytes + column / 8] >> (column % 8)) & 1u ? mask.scale : 0.0f;
}

template <Scalar T>
kernels::GemmProblem input_grad_problem(MatrixView<T> dx, Accumulate mode) noexcept {
  kernels::GemmProblem problem;
  problem.m = dx.rows;
  problem.n = dx.cols;
  problem.accumulate = mode == Accumulate::kAdd;
  problem.c = dx.data;
  problem.c_stride = dx.stride;
  problem.c_type = dtype_of<T>();
  return problem;
}

/// dx += mask ∘ dS.
template <Scalar T>
void add_identity_term(const BasicInputGradTerm<Accumulator<T>>& term, MatrixView<T> dx, ExecutorRef executor) {
  using A = Accumulator<T>;
  parallel_for_ranges(executor, dx.rows, 8, [&](Index first, Index last) {
    for (Index i = first; i < last; ++i) {
      for (Index k = 0; k < dx.cols; ++k) {
        const A part = rounded(static_cast<A>(mask_factor(term.mask, i, k)) * term.ds(i, k));
        dx(i, k) = static_cast<T>(static_cast<A>(dx(i, k)) + part);
      }
    }
  });
}

/// dx += mask ∘ (dS·A) for every term.
template <Scalar T>
void add_input_grad_terms(std::span<const BasicInputGradTerm<Accumulator<T>>> terms, MatrixView<T> dx,
                          ExecutorRef executor) {
  if (dx.empty()) return;
  for (const auto& term : terms) {
    if (term.a.empty()) {
      add_identity_term<T>(term, dx, executor);
    } else if constexpr (std::same_as<T, double>) {
      for (Index i = 0; i < dx.rows; ++i) {
        for (Index k = 0; k < dx.cols; ++k) {
          double sum = 0;
          for (Index q = 0; q < term.ds.cols; ++q) sum += term.ds(i, q) * term.a(q, k);
          dx(i, k) += static_cast<double>(mask_factor(term.mask, i, k)) * sum;
        }
      }
    } else {
      kernels::GemmProblem problem = input_grad_problem(dx, Accumulate::kAdd);
      ColumnList columns;
      columns.push(
          kernels::LowRankColumns{term.ds.data, term.ds.stride, term.ds.cols, term.a.data, term.a.stride, false, 1.0f});
      columns.give_to(problem);
      problem.low_rank_mask = term.mask;
      kernels::gemm(problem, executor);
    }
  }
}

/// dx (+)= dy·W + terms over a panel source. Terms share the GEMM while they share a mask; the others are added.
template <Scalar T, PanelSource L>
void panel_backward(const L& base, MatrixView<const T> dy, std::span<const BasicInputGradTerm<float>> terms,
                    MatrixView<T> dx, Accumulate mode, ExecutorRef executor) {
  if constexpr (requires { base.check_backward(); }) base.check_backward();
  if (dx.empty()) return;
  kernels::GemmProblem problem = input_grad_problem(dx, mode);
  problem.k = dy.cols;
  problem.a = operand_of<T>(dy);
  problem.b = panel_fill_of(base, Order::kBackward);
  ColumnList columns;
  std::size_t fused = 0;
  for (; fused < terms.size() && terms[fused].mask.bits == terms[0].mask.bits && !terms[fused].a.empty(); ++fused) {
    const auto& term = terms[fused];
    columns.push(kernels::LowRankColumns{term.ds.data, term.ds.stride, term.ds.cols, term.a.data, term.a.stride, false, 1.0f});
  }
  columns.give_to(problem);
  if (fused > 0) problem.low_rank_mask = terms[0].mask;
  kernels::gemm(problem, executor);
  add_input_grad_terms<T>(terms.subspan(fused), dx, executor);
}

/// y = base(x).
template <Scalar T, class L>
void plain_forward(const L& base, MatrixView<const T> x, MatrixView<T> y, ExecutorRef executor) {
  if constexpr (ExecutorForward<L, T>) {
    base.forward(x, y, executor);
  } else {
    base.forward(x, y);
  }
}

/// dx (+)= dy·W by the base's own backward_input.
template <Scalar T, class L>
void plain_backward(const L& base, MatrixView<const T> dy, MatrixView<T> dx, Accumulate mode, ExecutorRef executor) {
  if constexpr (ExecutorBackward<L, T>) {
    base.backward_input(dy, dx, mode, executor);
  } else if (mode == Accumulate::kOverwrite) {
    base.backward_input(dy, dx);
  } else {
    Matrix<T> fresh(dx.rows, dx.cols);
    base.backward_input(dy, fresh.view());
    for (Index i = 0; i < dx.rows; ++i) {
      for (Index j = 0; j < dx.cols; ++j) {
        using A = Accumulator<T>;
        dx(i, j) = static_cast<T>(static_cast<A>(dx(i, j)) + static_cast<A>(fresh(i, j)));
      }
    }
  }
}

/// Throws ShapeError unless `view` is rows × cols with a stride that holds a row. `who` does what: "Lora::forward".
template <class T>
void check_shape(std::string_view who, std::string_view what, MatrixView<T> view, Index rows, Index cols) {
  if (view.rows != rows || view.cols != cols) {
    fail<ShapeError>("{}: {} is [{}, {}]; expected [{}, {}]", who, what, view.rows, view.cols, rows, cols);
  }
  if (view.rows > 1 && view.stride < view.cols) {
    fail<ShapeError>("{}: {} has {} columns and a row stride of {}; expected a stride of at least {}", who, what,
                     view.cols, view.stride, view.cols);
  }
  if (view.data == nullptr && !view.empty()) {
    fail<ShapeError>("{}: {} is [{}, {}] without memory", who, what, rows, cols);
  }
}

}  // namespace detail

/// y = x·Wᵀ + bias + Σ terms; see the head of this file. Shapes are the caller's to check.
template <Scalar T, LinearLike<T> L>
void forward_low_rank(const L& base, MatrixView<const T> x,
                      std::span<const BasicLowRankTerm<Accumulator<T>>> terms, MatrixView<T> y, ExecutorRef executor) {
  if constexpr (FusedLowRank<L, T>) {
    base.forward_low_rank(x, terms, y, executor);
  } else if constexpr (PanelSource<L> && !std::same_as<T, double>) {
    detail::panel_forward<T>(base, x, terms, y, executor);
  } else {
    detail::plain_forward<T>(base, x, y, executor);
    detail::add_terms<T>(x, terms, y, executor);
  }
}

/// dx (+)= dy·W + Σ terms; see the head of this file. Shapes are the caller's to check.
template <Scalar T, LinearLike<T> L>
void backward_low_rank(const L& base, MatrixView<const T> dy,
                       std::span<const BasicInputGradTerm<Accumulator<T>>> terms, MatrixView<T> dx, Accumulate mode,
                       ExecutorRef executor) {
  static_assert(TrainableBase<L, T> || detail::FusedInputGrad<L, T>,
                "peft: training over a base layer needs peft::PanelSource (fill_panel and bias) or "
                "peft::BackwardLinear (backward_input); this base has neither");
  if constexpr (detail::FusedInputGrad<L, T>) {
    base.backward_low_rank(dy, terms, dx, mode, executor);
  } else if constexpr (PanelSource<L> && !std::same_as<T, double>) {
    detail::panel_backward<T>(base, dy, terms, dx, mode, executor);
  } else if constexpr (TrainableBase<L, T>) {
    detail::plain_backward<T>(base, dy, dx, mode, executor);
    detail::add_input_grad_terms<T>(terms, dx, executor);
  }
}

PEFT_END_NAMESPACE
