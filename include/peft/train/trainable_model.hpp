#pragma once
/// What the trainer asks of a model. It never learns which model or which method: gradients are added by the model,
/// read and zeroed through the parameter visitor.

#include <concepts>
#include <cstdint>

#include "peft/core/view.hpp"
#include "peft/parameter.hpp"
#include "peft/train/batch.hpp"

PEFT_BEGIN_NAMESPACE

namespace detail {

/// A visitor that does nothing: the archetype against which TrainableModel is checked.
template <class A>
struct IgnoreParameter {
  void operator()(const ParameterInfo&, VectorView<A>, VectorView<A>) const noexcept {}
};

}  // namespace detail

/// A model that can be trained:
///   accumulator_type                 float, or double for a double model: type of parameters and gradients
///   for_each_parameter(visit)        visit(const ParameterInfo&, value, grad) for every trainable parameter, always in
///                                    the same order, under names that are all different
///   forward_backward(batch, grad_scale, seed, step, sum)
///                                    adds the batch's loss, label tokens and hits to `sum`, and to every gradient
///                                    grad_scale × d(sum of the tokens' losses). Dropout masks depend on (seed, step,
///                                    batch.first_row + row, or batch.first_sequence + sequence) only, so that cutting a batch changes none
///   evaluate(batch, sum)             the same sums without dropout and without gradients
template <class M>
concept TrainableModel = std::floating_point<typename M::accumulator_type> &&
    requires(M& model, const PackedBatch& batch, double grad_scale, std::uint64_t seed, std::uint32_t step,
             LossSum& sum, const detail::IgnoreParameter<typename M::accumulator_type>& visit) {
      model.forward_backward(batch, grad_scale, seed, step, sum);
      model.evaluate(batch, sum);
      model.for_each_parameter(visit);
    };

PEFT_END_NAMESPACE
