#pragma once
/// Products with one side as thin as a rank, for LoRA's projections and gradients (x̃ = x under a dropout mask):
///   skinny_nt    S[m,r]  = scale · x̃[m,k]·A[r,k]ᵀ
///   skinny_nn    dS[m,r] = scale · dy[m,n]·B[n,r]
///   skinny_tn    G[r,k] += scale · dS[m,r]ᵀ·x̃[m,k]      (dA)
///   skinny_tn_t  G[n,r] += scale · dy[m,n]ᵀ·S[m,r]       (dB)
/// x and dy are float, f16 or bf16; the rest is float. x is read once. Sums over m run in ascending order.


#include "peft/core/executor.hpp"
#include "peft/core/rounded.hpp"
#include "peft/kernels/arithmetic.hpp"
#include "peft/kernels/gemm.hpp"
#include "peft/kernels/kernel_table.hpp"
#include "peft/kernels/scratch.hpp"

PEFT_BEGIN_NAMESPACE
namespace kernels {
namespace detail {

// Rows taken together: four rows of x against each row of A; sixteen rows are one task.
inline constexpr Index kSkinnyRows = 16;
// Columns of a gradient that one task owns, and rows of x that it widens at a time: 128·64·4 = 32 KiB.
inline constexpr Index kSkinnyColumns = 128;
inline constexpr Index kSkinnyDepth = 64;

/// Rows [first, first + rows) of x, columns [column, column + n), widened and masked, at dst with stride n.
inline void widen_masked(const KernelTable& t, const void* x, Index x_stride, DType type, const MaskBits& mask,
                         Index first, Index rows, Index column, Index n, Index columns, float* dst) noexcept {
  for (Index i = 0; i < rows; ++i) {
    t.widen(n, element(x, (first + i) * x_stride + column, type), type, dst + i * n);
    if (mask.bits != nullptr) {
      t.apply_mask(n, mask.bits + (first + i) * mask.stride_bytes, column, columns, mask.scale, dst + i * n);
    }
  }
}

}  // namespace detail

/// S = scale·x̃·Aᵀ (overwritten, or added to where `accumulate`). x [m,k], A [r,k], S [m,r].
inline void skinny_nt(Index m, Index k, Index r, const void* x, Index x_stride, DType x_type, const MaskBits& mask,
                      const float* a, Index a_stride, float scale, float* s, Index s_stride, bool accumulate,
                      ExecutorRef executor) {
  if (m <= detail::kThinRows && k > 0 && r > 0 && mask.bits == nullptr && scale == 1.0f) {
    GemmProblem problem;
    problem.m = m, problem.n = r, problem.k = k;
    problem.a = {x, x_stride, x_type, false};
    problem.b.dense = {a, a_stride, DType::kF32, true};
    problem.accumulate = accumulate;
    problem.c = s;
    problem.c_stride = s_stride;
    gemm(problem, executor);
    return;
  }
  const KernelTable& t = table();
  parallel_for_ranges(executor, m, detail::kSkinnyRows, [&](Index first, Index last) {
    const bool direct = x_type == DType::kF32 && mask.bits == nullptr;
    for (Index i = first; i < last; i += 4) {
      const Index rows = detail::smaller(4, last - i);
      const float* left = static_cast<const float*>(x) + (direct ? i * x_stride : 0);
      Index left_stride = x_stride;
      float* memory = scratch(ScratchSlot::kRows, 4 * k + 4 * r + 64);
      float* dots = memory + 4 * k;
      if (!direct) {
        detail::widen_masked(t, x, x_stride, x_type, mask, i, rows, 0, k, k, memory);
        left = memory;
        left_stride = k;
      }
      t.dots(left, left_stride, rows, a, a_stride, DType::kF32, r, k, dots, r);
      for (Index row = 0; row < rows; ++row) {
        float* out = s + (i + row) * s_stride;
        for (Index q = 0; q < r; ++q) {
          const float term = rounded(scale * dots[row * r + q]);
          out[q] = accumulate ? out[q] + term : term;
        }
      }
    }
  });
}

/// dS = scale·dy·B (overwritten). dy [m,n], B [n,r], dS [m,r].
inline void skinny_nn(Index m, Index n, Index r, const void* dy, Index dy_stride, DType dy_type, const float* b,
                      Index b_stride, float scale, float* ds, Index ds_stride, ExecutorRef executor) {
  float* transposed = scratch(ScratchSlot::kShared, r * n + 64);
  for (Index j = 0; j < n; ++j) {
    for (Index q = 0; q < r; ++q) transposed[q * n + j] = b[j * b_stride + q];
  }
  skinny_nt(m, n, r, dy, dy_stride, dy_type, MaskBits{}, transposed, n, scale, ds, ds_stride, false, executor);
}

namespace detail {

/// Calls finish(column, count, g) with g [r, count] = Σ_i s[i,·]ᵀ·x̃[i, column…] for every run of columns.
template <class Finish>
void skinny_gradient(Index m, Index k, Index r, const float* s, Index s_stride, const void* x, Index x_stride,
                     DType x_type, const MaskBits& mask, ExecutorRef executor, Finish&& finish) {
  const KernelTable& t = table();
  parallel_for_ranges(executor, k, kSkinnyColumns, [&](Index first, Index last) {
    const Index n = last - first;
    float* memory = scratch(ScratchSlot::kRows, kSkinnyDepth * n + r * n + 64);
    float* sums = memory + kSkinnyDepth * n;
    fill_floats(sums, r * n, 0.0f);
    for (Index i = 0; i < m; i += kSkinnyDepth) {
      const Index rows = smaller(kSkinnyDepth, m - i);
      if (x_type == DType::kF32 && mask.bits == nullptr) {
        const float* const direct = static_cast<const float*>(x) + i * x_stride + first;
        t.outer_update(rows, r, n, s + i * s_stride, s_stride, 1, direct, x_stride, sums, n);
        continue;
      }
      widen_masked(t, x, x_stride, x_type, mask, i, rows, first, n, k, memory);
      t.outer_update(rows, r, n, s + i * s_stride, s_stride, 1, memory, n, sums, n);
    }
    finish(first, n, sums);
  });
}

}  // namespace detail

/// G += scale·dSᵀ·x̃. dS [m,r], x [m,k], G [r,k].
inline void skinny_tn(Index m, Index k, Index r, const float* ds, Index ds_stride, const void* x, Index x_stride,
                      DType x_type, const MaskBits& mask, float scale, float* g, Index g_stride,
                      ExecutorRef executor) {
  const KernelTable& t = table();
  detail::skinny_gradient(m, k, r, ds, ds_stride, x, x_stride, x_type, mask, executor,
                          [&](Index first, Index n, const float* sums) {
                            for (Index q = 0; q < r; ++q) t.axpy(n, scale, sums + q * n, g + q * g_stride + first);
                          });
}

/// G += scale·dyᵀ·S. dy [m,n], S [m,r], G [n,r].
inline void skinny_tn_t(Index m, Index n, Index r, const void* dy, Index dy_stride, DType dy_type, const float* s,
                        Index s_stride, float scale, float* g, Index g_stride, ExecutorRef executor) {
  detail::skinny_gradient(m, n, r, s, s_stride, dy, dy_stride, dy_type, MaskBits{}, executor,
                          [&](Index first, Index count, const float* sums) {
                            for (Index j = 0; j < count; ++j) {
                              float* row = g + (first + j) * g_stride;
                              for (Index q = 0; q < r; ++q) row[q] += rounded(scale * sums[q * count + j]);
                            }
                          });
}

}  // namespace kernels
PEFT_END_NAMESPACE
