#pragma once
/// Clipping by the norm of all gradients together, as torch.nn.utils.clip_grad_norm_:
///   norm = √Σ g²,   g ← g · min(1, max_norm / (norm + 1e-6))
/// The sum is taken in double in a fixed order. The factor is not applied here: the optimizer multiplies it in while it
/// reads the gradient.

#include <cmath>
#include <concepts>
#include <type_traits>
#include <vector>

#include "peft/core/executor.hpp"
#include "peft/core/rounded.hpp"
#include "peft/core/view.hpp"
#include "peft/kernels/adamw.hpp"
#include "peft/kernels/kernel_table.hpp"
#include "peft/parameter.hpp"

PEFT_BEGIN_NAMESPACE

namespace detail {

/// Σ x², in double, in a fixed order.
template <std::floating_point A>
double squared_norm(VectorView<const A> x) {
  if constexpr (std::same_as<A, float>) {
    return kernels::squared_norm(x.size, x.data);
  } else {
    double sum = 0.0;
    for (const A value : x) sum += value * value;
    return sum;
  }
}

}  // namespace detail

/// The norm of all gradients of `model`; not finite where one of them is not. The same bits for any number of threads.
template <class Model>
double gradient_norm(Model& model, ExecutorRef executor = {}) {
  using A = typename Model::accumulator_type;
  std::vector<VectorView<const A>> grads;
  model.for_each_parameter([&](const ParameterInfo&, VectorView<A>, VectorView<A> grad) { grads.push_back(grad); });
  // Throws here, not inside a task, where PEFT_FORCE_ISA names an instruction set that is not there.
  if constexpr (std::same_as<A, float>) kernels::table();
  std::vector<double> squares(grads.size());
  parallel_for(executor, static_cast<Index>(grads.size()), [&](Index i) {
    squares[static_cast<std::size_t>(i)] = detail::squared_norm(grads[static_cast<std::size_t>(i)]);
  });
  double sum = 0.0;
  for (const double square : squares) sum = rounded(sum + square);
  return root(sum);
}

/// The factor that brings gradients of norm `norm` to at most `max_norm`; 1 where max_norm is not above 0: no clipping.
inline double clip_coefficient(double norm, double max_norm) noexcept {
  if (!(max_norm > 0.0)) return 1.0;
  const double coefficient = quotient(max_norm, norm + 1e-6);
  return coefficient < 1.0 ? coefficient : 1.0;
}

PEFT_END_NAMESPACE
