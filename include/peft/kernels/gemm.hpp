#pragma once
/// The matrix product that everything stands on:
///   C[m,n] (+)= mask ∘ Σ_t scale_t · S_t[m,r_t] · L_t[r_t,n]  +  A[m,k] · op(W)[k,n]  +  bias[n]
/// The low-rank terms are r more columns of K: they go through the same accumulators. They come first, so that a
/// dropout mask (backward: dx = m∘(dS·A) + dy·W) multiplies them in registers before the K loop continues.
/// op(W) is whatever can fill a panel: see PanelFill. Sums are in float; the order over K is fixed by the shape.

#include "peft/core/executor.hpp"
#include "peft/core/scalar.hpp"
#include "peft/core/view.hpp"
#include "peft/kernels/gemm_problem.hpp"

PEFT_BEGIN_NAMESPACE
namespace kernels {

/// Runs `problem` on `executor`. Same bits for any number of threads. Throws only where PEFT_FORCE_ISA is wrong or
/// memory for packing is exhausted.
inline void gemm(const GemmProblem& problem, ExecutorRef executor);

}  // namespace kernels
PEFT_END_NAMESPACE

#include "peft/kernels/gemm_driver.hpp"
