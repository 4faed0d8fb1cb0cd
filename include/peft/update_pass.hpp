#pragma once
/// One linear layer with any set of updates, forward and backward; docs/METHODS.md has the equation:
///   y = G∘(x'·Wᵀ + bias) − Σ_d w_d(g_d−1)∘bias + Σ_u w_u·scale_u·S_u·B_uᵀ
///   x' = L∘x,  G = Π_i (1 + w_i(l_i−1)) + Σ_d w_d(g_d−1)      i: IA³ on the output, d: DoRA
/// DoRA under dropout is no part of G: w(g−1)∘(x̃·Wᵀ) is added by a second base product, as in PEFT.
/// Saved for backward: what each update saves, and, where there is an output gain, the base's result [n, out].

#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "peft/linear_update.hpp"
#include "peft/mixed_layer.hpp"
#include "peft/ops/add.hpp"
#include "peft/ops/column_gain.hpp"
#include "peft/update_change.hpp"

PEFT_BEGIN_NAMESPACE

/// What a pass keeps of the layer as a whole.
template <Scalar T>
struct PassSaved {
  Matrix<T> product;               ///< the base's result, bias and all [n, out]
  Matrix<Accumulator<T>> gain;     ///< G [1, out]; empty: 1
  Matrix<Accumulator<T>> in_gain;  ///< L [1, in]; empty: 1
};

namespace detail {

template <Scalar T>
class UpdatePass {
 public:
  using A = Accumulator<T>;
  using Active = ActiveUpdate<T>;
  using Saves = std::vector<UpdateSaved<T>>;

  /// `who` begins error messages. Throws ConfigError for a combination that means nothing.
  UpdatePass(const AnyLinear<T>& base, std::span<const Active> active, std::string_view who, ExecutorRef executor)
      : base_(base), active_(active), who_(who), executor_(executor) {
    for (const Active& one : active_) {
      only_terms_ = only_terms_ && one.update->kind() == UpdateKind::kTerms;
      has_gain_ = has_gain_ || one.update->kind() == UpdateKind::kOutputGain;
      if (one.update->kind() == UpdateKind::kReplacement) replacements_.push_back(&one);
    }
    if (replacements_.size() == 1 && replacements_.front()->weight == 1.0) {
      layer_ = replacements_.front()->update->replacement();
    } else if (!replacements_.empty()) {
      if (has_gain_) {
        fail<ConfigError>("{}: an update with a gain (DoRA, IA3) and a trained copy of the weight at a weight that is not 1, "
                          "or several copies, act on it at once; select one of them",
                          who_);
      }
      mixed_.emplace(base_, executor_);
      for (const Active* one : replacements_) mixed_->add(*one->update->replacement(), one->weight);
    }
  }

  /// y = the layer with its updates; `saved` gets one entry per update. keep: backward follows.
  void forward(MatrixView<const T> x, MatrixView<T> y, Saves& saved, PassSaved<T>& pass, bool keep) const {
    typename LinearUpdate<T>::Terms terms;
    if (saved.size() < active_.size()) saved.resize(active_.size());
    std::vector<Buffer<std::uint8_t>> bits(active_.size());
    std::vector<kernels::MaskBits> masks(active_.size());
    for (std::size_t i = 0; i < active_.size(); ++i) {
      saved[i].dropout = active_[i].dropout;
      masks[i] = mask_of(i, x, bits[i]);
      if (active_[i].update->kind() == UpdateKind::kOutputGain) {
        active_[i].update->make_gain(*layer_, saved[i], executor_);
      }
      active_[i].update->forward_terms({x, masks[i], active_[i].weight, executor_}, saved[i], terms);
    }
    if (only_terms_) {
      if (terms.empty()) {
        base_.forward(x, y, executor_);
      } else {
        base_.forward_low_rank(x, terms, y, executor_);
      }
      return;
    }
    make_input_gain(saved, x.cols, pass);
    Matrix<T> scaled;
    const MatrixView<const T> input = scaled_input(x, pass, scaled);
    if (mixed_) {
      mixed_->forward(input, y);
    } else if (!has_gain_ && pass.in_gain.empty() && !terms.empty()) {
      layer_->forward_low_rank(input, terms, y, executor_);
      terms.clear();
    } else {
      layer_->forward(input, y, executor_);
    }
    if (has_gain_) output_gain(input, y, masks, saved, pass, keep);
    add_terms<T>(x, terms, y, executor_);
  }

  /// Adds to the updates' gradients; dx (+)= the input's gradient, or nothing where dx.data is null.
  void backward(MatrixView<const T> dy, MatrixView<const T> x, const Saves& saved, const PassSaved<T>& pass,
                MatrixView<T> dx, Accumulate mode) const {
    Index total_rank = 0;
    for (const Active& one : active_) total_rank += one.update->rank();
    Matrix<A> ds(x.rows, total_rank);
    typename LinearUpdate<T>::GradTerms terms;
    std::vector<Buffer<std::uint8_t>> bits(active_.size());
    std::vector<kernels::MaskBits> masks(active_.size());
    Matrix<T> scaled;
    const MatrixView<const T> input = only_terms_ ? x : scaled_input(x, pass, scaled);
    Matrix<T> under_gain;  // the gradient of the base's result
    MatrixView<const T> d_base = dy;
    if (has_gain_) {
      under_gain.resize_discard(dy.rows, dy.cols);
      ops::column_gain<T>(dy, pass.gain.flat(), {}, under_gain.view(), executor_);
      d_base = under_gain.view();
    }
    Index column = 0;
    for (std::size_t i = 0; i < active_.size(); ++i) {
      LinearUpdate<T>& update = *active_[i].update;
      masks[i] = mask_of(i, x, bits[i]);
      const UpdateInput<T> in{x, masks[i], active_[i].weight, executor_};
      const MatrixView<A> own = ds.view().column_range(column, update.rank());
      column += update.rank();
      if (update.kind() == UpdateKind::kTerms) {
        update.backward_terms(dy, in, saved[i], own, {}, terms);
      } else if (update.kind() == UpdateKind::kOutputGain) {
        Buffer<A> gain_grad = Buffer<A>::zeros(dy.cols);
        update.backward_terms(dy, in, saved[i], own, gain_grad.view(), terms);
        add_gain_gradient(i, dy, masks[i], saved, pass, gain_grad.view());
        update.pull_gain(saved[i], std::as_const(gain_grad).view());
      } else if (update.kind() == UpdateKind::kReplacement) {
        update.backward_replacement(d_base, {input, {}, active_[i].weight, executor_});
        update.backward_terms(dy, in, saved[i], own, {}, terms);
      }
    }
    if (only_terms_) {
      if (dx.data != nullptr) base_.backward_low_rank(dy, terms, dx, mode, executor_);
      return;
    }
    const std::vector<Matrix<T>> dropped = dropped_input_gradients(dy, masks, saved, dx.data != nullptr);
    if (!pass.in_gain.empty()) {
      Matrix<T> d_input(x.rows, x.cols);
      base_backward(d_base, d_input.view(), Accumulate::kOverwrite, {});
      for (const Matrix<T>& one : dropped) ops::add<T>(one.view(), d_input.view(), executor_);
      pull_input_gain(x, d_input.view(), saved);
      if (dx.data == nullptr) return;
      ops::column_gain<T>(std::as_const(d_input).view(), pass.in_gain.flat(), {}, d_input.view(), executor_);
      put(d_input, dx, mode);
      add_input_grad_terms<T>(terms, dx, executor_);
      return;
    }
    if (dx.data == nullptr) return;
    base_backward(d_base, dx, mode, terms);
    for (const Matrix<T>& one : dropped) ops::add<T>(one.view(), dx, executor_);
  }

  /// The same as a change of the layer: W' = diag(G)·W·diag(L) + Σ w·scale·B·A, the bias likewise. Throws ConfigError for
  /// an update that acts on some rows only.
  OwnedChange<T> change() const {
    OwnedChange<T> result;
    result.factors.resize(active_.size());
    Saves& saved = result.factors;
    PassSaved<T> pass;
    bool bias_changes = has_gain_ || !replacements_.empty();
    for (std::size_t i = 0; i < active_.size(); ++i) {
      if (!active_[i].rows.empty()) {
        fail<ConfigError>("{}: an adapter acts from its invocation tokens on; expected one that acts everywhere to merge it",
                          who_);
      }
      if (active_[i].update->kind() == UpdateKind::kOutputGain) {
        active_[i].update->make_gain(*layer_, saved[i], executor_);
      }
      active_[i].update->merge_terms(active_[i].weight, saved[i], result.terms);
      bias_changes = bias_changes || active_[i].update->changes_bias();
    }
    make_input_gain(saved, base_.in_features(), pass);
    if (!pass.in_gain.empty()) result.column_gain = copy_of(pass.in_gain);
    if (!replacements_.empty()) {
      result.weight.resize_discard(base_.out_features(), base_.in_features());
      layer_->read_weight_rows(0, result.weight.view());
      if (mixed_) mixed_->mix_weight(result.weight);
    }
    if (!bias_changes) return result;
    const Buffer<A> base_bias = replacements_.empty() || mixed_ ? base_.read_bias() : Buffer<A>();
    result.bias = Buffer<A>::zeros(base_.out_features());
    if (has_gain_) result.row_gain = Buffer<A>(base_.out_features());
    bool any = false;
    for (Index j = 0; j < result.bias.size(); ++j) {
      A on_bias = has_gain_ ? other_factors(UpdateKind::kOutputGain, active_.size(), saved, j) : A(1);
      if (has_gain_) {
        A gain = on_bias;
        for (std::size_t i = 0; i < active_.size(); ++i) {
          if (active_[i].update->kind() != UpdateKind::kOutputGain || active_[i].update->gain_covers_bias()) continue;
          gain = rounded(gain + rounded(weight(i) * rounded(saved[i].gain(0, j) - A(1))));
        }
        result.row_gain[j] = gain;
      }
      if (mixed_) on_bias *= mixed_->base_share();
      if (!base_bias.empty()) result.bias[j] = on_bias * base_bias[j];
    }
    for (const Active& one : active_) {
      if (one.update->changes_bias()) one.update->add_bias(one.weight, result.bias.view());
    }
    for (const A value : result.bias) any = any || value != A(0);
    if (!any && base_bias.empty()) result.bias = {};
    return result;
  }

 private:
  static Buffer<A> copy_of(const Matrix<A>& values) {
    Buffer<A> result(values.size());
    std::copy(values.flat().begin(), values.flat().end(), result.begin());
    return result;
  }
  kernels::MaskBits mask_of(std::size_t i, MatrixView<const T> x, Buffer<std::uint8_t>& scratch) const {
    const Active& one = active_[i];
    kernels::MaskBits mask = one.dropout.bits(x.rows, x.cols, one.update->dropout(), scratch, executor_);
    if (one.rows.empty()) return mask;
    return rows_only(mask, one.rows, x, scratch);
  }
  /// The mask with nothing kept in the rows where the update does not act: forward, gradients and dx all follow from it.
  kernels::MaskBits rows_only(kernels::MaskBits mask, std::span<const std::uint8_t> rows, MatrixView<const T> x,
                              Buffer<std::uint8_t>& scratch) const {
    if (static_cast<Index>(rows.size()) != x.rows) {
      fail<ShapeError>("{}: the selection says for {} rows whether an adapter acts on them; expected {}, those of x", who_,
                       rows.size(), x.rows);
    }
    const Index stride = (x.cols + 7) / 8;
    Buffer<std::uint8_t> own(x.rows * stride);
    for (Index i = 0; i < x.rows; ++i) {
      for (Index b = 0; b < stride; ++b) {
        const std::uint8_t kept = mask.bits != nullptr ? mask.bits[i * mask.stride_bytes + b] : std::uint8_t{0xFF};
        own[i * stride + b] = rows[static_cast<std::size_t>(i)] != 0 ? kept : std::uint8_t{0};
      }
    }
    scratch = std::move(own);
    return {scratch.data(), stride, mask.bits != nullptr ? mask.scale : 1.0f};
  }
  bool is_dropped(std::size_t i, const kernels::MaskBits& mask) const noexcept {
    return mask.bits != nullptr && active_[i].update->kind() == UpdateKind::kOutputGain &&
           !active_[i].update->gain_covers_bias();
  }
  A weight(std::size_t i) const noexcept { return static_cast<A>(active_[i].weight); }

  // -- gains ----------------------------------------------------------------------------------------------------------
  void make_input_gain(Saves& saved, Index in, PassSaved<T>& pass) const {
    pass.in_gain.resize_discard(0, 0);
    for (std::size_t i = 0; i < active_.size(); ++i) {
      if (active_[i].update->kind() != UpdateKind::kInputGain) continue;
      active_[i].update->make_gain(*layer_, saved[i], executor_);
      if (pass.in_gain.empty()) {
        pass.in_gain.resize_discard(1, in);
        for (A& value : pass.in_gain.flat()) value = A(1);
      }
      for (Index k = 0; k < in; ++k) pass.in_gain(0, k) *= factor(i, saved[i].gain(0, k));
    }
  }
  /// 1 + w(l−1).
  A factor(std::size_t i, A gain) const noexcept { return A(1) + rounded(weight(i) * rounded(gain - A(1))); }
  /// The product of the others' factors at `place`.
  A other_factors(UpdateKind kind, std::size_t self, const Saves& saved, Index place) const noexcept {
    A product = 1;
    for (std::size_t i = 0; i < active_.size(); ++i) {
      if (i == self || active_[i].update->kind() != kind) continue;
      if (kind == UpdateKind::kOutputGain && !active_[i].update->gain_covers_bias()) continue;
      product *= factor(i, saved[i].gain(0, place));
    }
    return product;
  }
  MatrixView<const T> scaled_input(MatrixView<const T> x, const PassSaved<T>& pass, Matrix<T>& memory) const {
    if (pass.in_gain.empty()) return x;
    memory.resize_discard(x.rows, x.cols);
    ops::column_gain<T>(x, pass.in_gain.flat(), {}, memory.view(), executor_);
    return std::as_const(memory).view();
  }
  void output_gain(MatrixView<const T> input, MatrixView<T> y, const std::vector<kernels::MaskBits>& masks, Saves& saved,
                   PassSaved<T>& pass, bool keep) const {
    const Buffer<A> bias = layer_->read_bias();
    pass.gain.resize_discard(1, y.cols);
    Buffer<A> shift = bias.empty() ? Buffer<A>() : Buffer<A>::zeros(y.cols);
    for (Index j = 0; j < y.cols; ++j) {
      A gain = other_factors(UpdateKind::kOutputGain, active_.size(), saved, j);
      for (std::size_t i = 0; i < active_.size(); ++i) {
        if (active_[i].update->kind() != UpdateKind::kOutputGain || active_[i].update->gain_covers_bias()) continue;
        if (is_dropped(i, masks[i])) continue;
        const A part = rounded(weight(i) * rounded(saved[i].gain(0, j) - A(1)));
        gain = rounded(gain + part);
        if (!bias.empty()) shift[j] -= rounded(part * bias[j]);
      }
      pass.gain(0, j) = gain;
    }
    if (keep) {
      pass.product.resize_discard(y.rows, y.cols);
      put_rows(y, pass.product.view());
    }
    ops::column_gain<T>(MatrixView<const T>(y), pass.gain.flat(), std::as_const(shift).view(), y, executor_);
    for (std::size_t i = 0; i < active_.size(); ++i) {
      if (!is_dropped(i, masks[i])) continue;
      Matrix<T> dropped(input.rows, input.cols), part(y.rows, y.cols);
      ops::apply_mask<T>(input, masks[i], dropped.view(), executor_);
      saved[i].dropped_product.resize_discard(y.rows, y.cols);
      layer_->forward(std::as_const(dropped).view(), saved[i].dropped_product.view(), executor_);
      Buffer<A> own_gain(y.cols), own_shift(bias.empty() ? 0 : y.cols);
      for (Index j = 0; j < y.cols; ++j) {
        own_gain[j] = rounded(weight(i) * rounded(saved[i].gain(0, j) - A(1)));
        if (!bias.empty()) own_shift[j] = -rounded(own_gain[j] * bias[j]);
      }
      ops::column_gain<T>(std::as_const(saved[i].dropped_product).view(), std::as_const(own_gain).view(),
                          std::as_const(own_shift).view(), part.view(), executor_);
      ops::add<T>(std::as_const(part).view(), y, executor_);
    }
  }
  /// grad += d loss / d gain of update i, without what its terms know.
  void add_gain_gradient(std::size_t i, MatrixView<const T> dy, const kernels::MaskBits& mask, const Saves& saved,
                         const PassSaved<T>& pass, VectorView<A> grad) const {
    Buffer<A> own = Buffer<A>::zeros(dy.cols);
    const Matrix<T>& product = is_dropped(i, mask) ? saved[i].dropped_product : pass.product;
    ops::column_products<T>(dy, product.view(), A(1), own.view(), executor_);
    if (!active_[i].update->gain_covers_bias()) {
      if (const Buffer<A> bias = layer_->read_bias(); !bias.empty()) {
        Matrix<A> sums = Matrix<A>::zeros(dy.cols, 1);
        gradient_b<T>(dy, ones_column<A>(dy.rows), A(1), sums.view(), executor_);
        for (Index j = 0; j < dy.cols; ++j) own[j] -= rounded(bias[j] * sums(j, 0));
      }
    }
    for (Index j = 0; j < dy.cols; ++j) {
      A change = rounded(weight(i) * own[j]);
      if (active_[i].update->gain_covers_bias()) {
        change = rounded(change * other_factors(UpdateKind::kOutputGain, i, saved, j));
      }
      grad[j] += change;
    }
  }
  void pull_input_gain(MatrixView<const T> x, MatrixView<const T> d_input, const Saves& saved) const {
    Buffer<A> own = Buffer<A>::zeros(x.cols);
    ops::column_products<T>(x, d_input, A(1), own.view(), executor_);
    for (std::size_t i = 0; i < active_.size(); ++i) {
      if (active_[i].update->kind() != UpdateKind::kInputGain) continue;
      Buffer<A> grad(x.cols);
      for (Index k = 0; k < x.cols; ++k) {
        grad[k] = rounded(rounded(weight(i) * own[k]) * other_factors(UpdateKind::kInputGain, i, saved, k));
      }
      active_[i].update->pull_gain(saved[i], std::as_const(grad).view());
    }
  }
  /// m∘((w(g−1)∘dy)·W) of every DoRA under dropout.
  std::vector<Matrix<T>> dropped_input_gradients(MatrixView<const T> dy, const std::vector<kernels::MaskBits>& masks,
                                                 const Saves& saved, bool wanted) const {
    std::vector<Matrix<T>> result;
    for (std::size_t i = 0; wanted && i < active_.size(); ++i) {
      if (!is_dropped(i, masks[i])) continue;
      Buffer<A> gain(dy.cols);
      for (Index j = 0; j < dy.cols; ++j) gain[j] = rounded(weight(i) * rounded(saved[i].gain(0, j) - A(1)));
      Matrix<T> part(dy.rows, dy.cols), back(dy.rows, layer_->in_features());
      ops::column_gain<T>(dy, std::as_const(gain).view(), {}, part.view(), executor_);
      layer_->backward_input(std::as_const(part).view(), back.view(), Accumulate::kOverwrite, executor_);
      ops::apply_mask<T>(std::as_const(back).view(), masks[i], back.view(), executor_);
      result.push_back(std::move(back));
    }
    return result;
  }

  // -- the base, or what stands for it -------------------------------------------------------------------------------
  void base_backward(MatrixView<const T> d, MatrixView<T> dx, Accumulate mode,
                     const typename LinearUpdate<T>::GradTerms& terms) const {
    if (mixed_) {
      mixed_->backward(d, dx, mode);
      add_input_grad_terms<T>(terms, dx, executor_);
    } else {
      layer_->backward_low_rank(d, terms, dx, mode, executor_);
    }
  }
  void put_rows(MatrixView<const T> from, MatrixView<T> to) const {
    for (Index i = 0; i < from.rows; ++i) std::copy_n(from.row(i), from.cols, to.row(i));
  }
  void put(const Matrix<T>& from, MatrixView<T> to, Accumulate mode) const {
    if (mode == Accumulate::kAdd) {
      ops::add<T>(from.view(), to, executor_);
    } else {
      put_rows(from.view(), to);
    }
  }

  const AnyLinear<T>& base_;
  std::span<const Active> active_;
  std::string_view who_;
  ExecutorRef executor_;
  const AnyLinear<T>* layer_ = &base_;
  std::vector<const Active*> replacements_;
  bool only_terms_ = true;
  bool has_gain_ = false;
  std::optional<MixedLayer<T>> mixed_;  // where replacements act at other weights than 1
};

}  // namespace detail
PEFT_END_NAMESPACE
