#pragma once
/// The smallest GPT-2 that can be trained, on the library's public headers: layer norm, learned positions, one matrix for q, k
/// and v, causal attention, gelu_new, a tied head; weights as Conv1D keeps them, [in, out]. float only.

#include <cmath>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "peft/adapted_linear.hpp"
#include "peft/dense_linear.hpp"
#include "peft/linear_cross_entropy.hpp"
#include "peft/ops/activation.hpp"
#include "peft/ops/add.hpp"
#include "peft/ops/attention.hpp"
#include "peft/ops/embedding.hpp"
#include "peft/ops/layer_norm.hpp"
#include "peft/train/batch.hpp"

namespace gpt2 {

using namespace peft;

/// y = x·M + bias with M [in, out] as the file has it: W = Mᵀ. A PanelSource: the library multiplies with it.
struct Conv1D {
  using value_type = float;
  Matrix<float> m;
  Buffer<float> b;

  Index in_features() const { return m.rows(); }
  Index out_features() const { return m.cols(); }
  void forward(MatrixView<const float> x, MatrixView<float> y) const {
    forward_low_rank<float>(*this, x, std::span<const LowRankTerm>{}, y, default_executor());
  }
  void fill_panel(Index n0, Index nc, Index k0, Index kc, float* panel, Index ld, Order order) const {
    for (Index i = 0; i < kc; ++i) {
      for (Index j = 0; j < nc; ++j) {
        panel[i * ld + j] = order == Order::kForward ? m(k0 + i, n0 + j) : m(n0 + j, k0 + i);
      }
    }
  }
  VectorView<const float> bias() const { return b.view(); }
};

struct Norm {
  Buffer<float> w, b;
  void forward(const Matrix<float>& x, Matrix<float>& y) const {
    y.resize_discard(x.rows(), x.cols());
    ops::layer_norm_forward<float>(x, w.view(), b.view(), 1e-5f, y);
  }
  void backward(const Matrix<float>& dy, const Matrix<float>& x, Accumulate mode, Matrix<float>& dx) const {
    ops::layer_norm_backward<float>(dy, x, w.view(), 1e-5f, mode, dx, {}, {});
  }
};

struct Block {
  Norm ln_1, ln_2;
  AdaptedLinear<float> c_attn, attn_proj, c_fc, mlp_proj;
};

struct Kept {
  Matrix<float> n1, qkv, a, m, n2, f, g, log_sum_exp;
  AdaptedLinear<float>::Saved of_attn, of_attn_proj, of_fc, of_mlp_proj;
};

class Model {
 public:
  Matrix<float> wte, wpe;
  std::vector<Block> blocks;
  Norm ln_f;
  Index heads = 0;

  std::vector<AdaptedLinear<float>*> sites() {
    std::vector<AdaptedLinear<float>*> result;
    for (Block& b : blocks) result.insert(result.end(), {&b.c_attn, &b.attn_proj, &b.c_fc, &b.mlp_proj});
    return result;
  }

  /// The last layer's output [tokens, hidden], normed.
  const Matrix<float>& forward(const PackedBatch& batch, const TrainContext<float>& context) {
    const Index tokens = batch.tokens(), h = wte.cols();
    in_.resize(blocks.size() + 1);
    kept_.resize(blocks.size());
    for (auto& x : in_) x.resize_discard(tokens, h);
    Matrix<float> positions(tokens, h);
    ops::embedding_forward<float, float>({batch.ids.data(), tokens}, wte.view(), in_[0].view());
    ops::embedding_forward<float, float>({batch.positions.data(), tokens}, wpe.view(), positions.view());
    ops::add<float>(positions, in_[0]);
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      const Block& b = blocks[i];
      Kept& s = kept_[i];
      s.qkv.resize_discard(tokens, 3 * h);
      for (Matrix<float>* x : {&s.a, &s.m}) x->resize_discard(tokens, h);
      s.log_sum_exp.resize_discard(tokens, heads);
      for (Matrix<float>* x : {&s.f, &s.g}) x->resize_discard(tokens, 4 * h);
      b.ln_1.forward(in_[i], s.n1);
      b.c_attn.forward(std::as_const(s.n1).view(), s.qkv, s.of_attn, context, ExecutorRef());
      ops::attention_forward<float>(s.qkv.view().column_range(0, h), segments(batch, s), shape(), s.a, s.log_sum_exp);
      b.attn_proj.forward(std::as_const(s.a).view(), s.m, s.of_attn_proj, context, ExecutorRef());
      ops::add<float>(in_[i], s.m);
      b.ln_2.forward(s.m, s.n2);
      b.c_fc.forward(std::as_const(s.n2).view(), s.f, s.of_fc, context, ExecutorRef());
      ops::activation_forward<float>(Activation::kGeluTanh, s.f, s.g);
      b.mlp_proj.forward(std::as_const(s.g).view(), in_[i + 1], s.of_mlp_proj, context, ExecutorRef());
      ops::add<float>(s.m, in_[i + 1]);
    }
    ln_f.forward(in_.back(), normed_);
    return normed_;
  }

  Matrix<float> logits(const PackedBatch& batch, const TrainContext<float>& context) {
    Matrix<float> result(batch.tokens(), wte.rows());
    head().forward<float>(forward(batch, context).view(), result.view());
    return result;
  }

  void forward_backward(const PackedBatch& batch, double grad_scale, const TrainContext<float>& context, LossSum& sum) {
    const Matrix<float>& normed = forward(batch, context);
    const Index tokens = batch.tokens(), h = wte.cols();
    Matrix<float> d(tokens, h), dg(tokens, 4 * h), da(tokens, h), dn(tokens, h), dqkv(tokens, 3 * h);
    LinearCrossEntropy<float> loss;
    loss.forward_backward(head(), normed.view(), {batch.targets.data(), tokens}, grad_scale, d.view(), sum);
    ln_f.backward(d, in_.back(), Accumulate::kOverwrite, d);
    for (std::size_t i = blocks.size(); i-- > 0;) {
      const Block& b = blocks[i];
      Kept& s = kept_[i];
      const auto overwrite = Accumulate::kOverwrite;
      b.mlp_proj.backward(std::as_const(d).view(), std::as_const(s.g).view(), s.of_mlp_proj, dg, overwrite, context, ExecutorRef());
      ops::activation_backward<float>(Activation::kGeluTanh, dg, s.f, dg);
      b.c_fc.backward(std::as_const(dg).view(), std::as_const(s.n2).view(), s.of_fc, dn, overwrite, context, ExecutorRef());
      b.ln_2.backward(dn, s.m, Accumulate::kAdd, d);
      b.attn_proj.backward(std::as_const(d).view(), std::as_const(s.a).view(), s.of_attn_proj, da, overwrite, context, ExecutorRef());
      std::vector<ops::AttentionGradSegment<float>> grads;
      for (std::size_t q = 0; q + 1 < batch.offsets.size(); ++q) {
        const auto rows = dqkv.view().row_range(batch.offsets[q], batch.offsets[q + 1] - batch.offsets[q]);
        grads.push_back({rows.column_range(h, h), rows.column_range(2 * h, h), {}, {}});
      }
      ops::attention_backward<float>(da, std::as_const(s.qkv).view().column_range(0, h), s.log_sum_exp, segments(batch, s),
                                     shape(), dqkv.view().column_range(0, h), grads);
      b.c_attn.backward(std::as_const(dqkv).view(), std::as_const(s.n1).view(), s.of_attn, dn, overwrite, context, ExecutorRef());
      b.ln_1.backward(dn, in_[i], Accumulate::kAdd, d);
    }
  }

 private:
  DenseLinear<float> head() const { return DenseLinear<float>(wte.view(), nullptr); }
  ops::AttentionShape shape() const {
    const Index d = wte.cols() / heads;
    return {heads, heads, d, static_cast<float>(1.0 / std::sqrt(static_cast<double>(d))), true};
  }
  std::vector<ops::AttentionSegment<float>> segments(const PackedBatch& batch, const Kept& s) const {
    const Index h = wte.cols();
    std::vector<ops::AttentionSegment<float>> result;
    for (std::size_t i = 0; i + 1 < batch.offsets.size(); ++i) {
      const Index first = batch.offsets[i], count = batch.offsets[i + 1] - first;
      const auto rows = s.qkv.view().row_range(first, count);
      result.push_back({first, count, rows.column_range(h, h), rows.column_range(2 * h, h), {}, {}});
    }
    return result;
  }

  std::vector<Matrix<float>> in_;
  std::vector<Kept> kept_;
  Matrix<float> normed_;
};

}  // namespace gpt2
