#pragma once
/// A stack of LSTM layers read in both directions (Hochreiter and Schmidhuber, 1997), as torch.nn.LSTM(bidirectional):
///   g = x_t·W_ihᵀ + b_ih + h_{t−1}·W_hhᵀ + b_hh [4H], cut into i, f, g, o;   c_t = σ(f)·c_{t−1} + σ(i)·tanh(g)
///   h_t = σ(o)·tanh(c_t);   a layer's output row is [h_t forward, h_t backward] [2H], which the next layer reads
/// Saved for backward, per layer and direction: the four gates after their functions [n,4H], c [n,H]; per layer its input.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "peft/dropout_mask.hpp"
#include "peft/encoders/trainable_linear.hpp"

PEFT_BEGIN_NAMESPACE
namespace encoders {

/// 1/(1 + e^−x).
template <std::floating_point A>
A sigmoid(A x) noexcept {
  return quotient(A(1), rounded(A(1) + rounded(std::exp(rounded(-x)))));
}

/// One direction of one layer.
template <std::floating_point A>
class LstmDirection {
 public:
  LstmDirection(Index in, Index hidden, bool reverse)
      : weight_ih_(4 * hidden, in),
        weight_hh_(4 * hidden, hidden),
        bias_ih_(1, 4 * hidden),
        bias_hh_(1, 4 * hidden),
        reverse_(reverse) {}

  /// All uniform in ±1/√H, as torch.
  void reset(Philox& random) {
    const float bound = quotient(1.0f, root(static_cast<float>(hidden())));
    for (EncoderParameter<A>* p : {&weight_ih_, &weight_hh_, &bias_ih_, &bias_hh_}) p->fill_uniform(random, bound);
  }

  /// x [n, in] → out [n, H].
  void forward(MatrixView<const A> x, MatrixView<A> out, ExecutorRef executor) {
    const Index h = hidden(), n = x.rows;
    gates_.resize_discard(n, 4 * h);
    cells_.resize_discard(n, h);
    product<A>(x, false, weight_ih_.value.view(), true, bias_ih_.value.flat(), Accumulate::kOverwrite, gates_.view(),
               executor);
    Matrix<A> recurrent(1, 4 * h);
    for (Index step = 0; step < n; ++step) {
      const Index t = at(step, n);
      const Index before = step > 0 ? at(step - 1, n) : -1;
      const MatrixView<const A> last = before >= 0 ? MatrixView<const A>(out.row(before), 1, h) : MatrixView<const A>();
      if (before >= 0) {
        product<A>(last, false, weight_hh_.value.view(), true, bias_hh_.value.flat(), Accumulate::kOverwrite,
                   recurrent.view(), executor);
      } else {
        std::copy(bias_hh_.value.flat().begin(), bias_hh_.value.flat().end(), recurrent.data());
      }
      A* g = gates_.row(t);
      for (Index j = 0; j < 4 * h; ++j) {
        const A sum = rounded(g[j] + recurrent.data()[j]);
        g[j] = j / h == 2 ? rounded(std::tanh(sum)) : sigmoid(sum);
      }
      for (Index j = 0; j < h; ++j) {
        const A kept = before >= 0 ? rounded(g[h + j] * cells_(before, j)) : A(0);
        cells_(t, j) = rounded(kept + rounded(g[j] * g[2 * h + j]));
        out(t, j) = rounded(g[3 * h + j] * rounded(std::tanh(cells_(t, j))));
      }
    }
  }

  /// Adds to the gradients; dx (+)= by `mode`. x and out are those of the forward.
  void backward(MatrixView<const A> d_out, MatrixView<const A> x, MatrixView<const A> out, Accumulate mode,
                MatrixView<A> dx, ExecutorRef executor) {
    const Index h = hidden(), n = x.rows;
    Matrix<A> d_gates(n, 4 * h), d_hidden = Matrix<A>::zeros(1, h), d_cell = Matrix<A>::zeros(1, h);
    for (Index step = n; step-- > 0;) {
      const Index t = at(step, n);
      const Index before = step > 0 ? at(step - 1, n) : -1;
      const A* g = gates_.row(t);
      A* d = d_gates.row(t);
      for (Index j = 0; j < h; ++j) {
        const A i = g[j], f = g[h + j], c = g[2 * h + j], o = g[3 * h + j];
        const A tanh_cell = rounded(std::tanh(cells_(t, j)));
        const A upper = rounded(d_out(t, j) + d_hidden.data()[j]);
        const A through = rounded(rounded(upper * o) * rounded(A(1) - rounded(tanh_cell * tanh_cell)));
        const A cell = rounded(through + d_cell.data()[j]);
        const A last = before >= 0 ? cells_(before, j) : A(0);
        const auto sigmoid_slope = [](A value) { return rounded(value * rounded(A(1) - value)); };
        d[j] = rounded(rounded(cell * c) * sigmoid_slope(i));
        d[h + j] = rounded(rounded(cell * last) * sigmoid_slope(f));
        d[2 * h + j] = rounded(rounded(cell * i) * rounded(A(1) - rounded(c * c)));
        d[3 * h + j] = rounded(rounded(upper * tanh_cell) * sigmoid_slope(o));
        d_cell.data()[j] = rounded(cell * f);
      }
      product<A>(MatrixView<const A>(d, 1, 4 * h), false, weight_hh_.value.view(), false, {}, Accumulate::kOverwrite,
                 d_hidden.view(), executor);
    }
    const MatrixView<const A> dg = std::as_const(d_gates).view();
    product<A>(dg, true, x, false, {}, Accumulate::kAdd, weight_ih_.grad.view(), executor);
    // Row t of d_gates meets the h that came before it: one row up, or one row down in the reverse direction.
    const Index first = reverse_ ? 0 : 1;
    if (n > 1) {
      product<A>(dg.row_range(first, n - 1), true, out.row_range(1 - first, n - 1), false, {}, Accumulate::kAdd,
                 weight_hh_.grad.view(), executor);
    }
    add_column_sums<A>(dg, bias_ih_.grad.flat());
    add_column_sums<A>(dg, bias_hh_.grad.flat());
    product<A>(dg, false, weight_ih_.value.view(), false, {}, mode, dx, executor);
  }

  void zero_grad() noexcept {
    for (EncoderParameter<A>* p : {&weight_ih_, &weight_hh_, &bias_ih_, &bias_hh_}) p->grad.fill_zero();
  }
  /// Under torch's names: weight_ih_l0, …, with "_reverse" for the other direction.
  template <class Visitor>
  void for_each_parameter(Visitor& visit, std::string_view prefix, Index layer) {
    const std::string end = "_l" + std::to_string(layer) + (reverse_ ? "_reverse" : "");
    weight_ih_.visit(visit, prefix, "weight_ih" + end, ParameterRole::kOther, true);
    weight_hh_.visit(visit, prefix, "weight_hh" + end, ParameterRole::kOther, true);
    bias_ih_.visit(visit, prefix, "bias_ih" + end, ParameterRole::kBias, false);
    bias_hh_.visit(visit, prefix, "bias_hh" + end, ParameterRole::kBias, false);
  }

 private:
  Index hidden() const noexcept { return weight_hh_.value.cols(); }
  /// The row that is read at `step`.
  Index at(Index step, Index n) const noexcept { return reverse_ ? n - 1 - step : step; }

  EncoderParameter<A> weight_ih_, weight_hh_, bias_ih_, bias_hh_;
  bool reverse_;
  Matrix<A> gates_, cells_;
};

/// The stack. Between layers, not after the last, elements are dropped in training, with a mask of each layer's own.
template <std::floating_point A>
class BidirectionalLstm {
 public:
  BidirectionalLstm(Index in, Index hidden, Index layers, float dropout) : hidden_(hidden), dropout_(dropout) {
    for (Index l = 0; l < layers; ++l) {
      const Index width = l == 0 ? in : 2 * hidden;
      layers_.push_back({LstmDirection<A>(width, hidden, false), LstmDirection<A>(width, hidden, true), {}, {}, {}, {}});
    }
  }

  Index out_features() const noexcept { return 2 * hidden_; }
  void reset(Philox& random) {
    for (Layer& layer : layers_) {
      layer.forward.reset(random);
      layer.backward.reset(random);
    }
  }

  /// x [n, in]; returns the last layer's output [n, 2H], which lives as long as no other forward runs. `dropout`: of the
  /// step; its key's module is the first layer's.
  MatrixView<const A> forward(MatrixView<const A> x, const DropoutKey* dropout, ExecutorRef executor) {
    MatrixView<const A> input = x;
    for (std::size_t l = 0; l < layers_.size(); ++l) {
      Layer& layer = layers_[l];
      layer.mask = {};
      if (l > 0 && dropout != nullptr) {
        DropoutKey key = *dropout;
        key.module += static_cast<std::uint32_t>(l - 1);
        layer.mask = DropoutMask(key).bits(input.rows, input.cols, dropout_, layer.mask_memory, executor);
      }
      layer.input.resize_discard(input.rows, input.cols);
      for (Index i = 0; i < input.rows; ++i) {
        for (Index j = 0; j < input.cols; ++j) layer.input(i, j) = rounded(input(i, j) * kept(layer.mask, i, j));
      }
      layer.output.resize_discard(x.rows, 2 * hidden_);
      const MatrixView<const A> own = std::as_const(layer.input).view();
      layer.forward.forward(own, layer.output.view().column_range(0, hidden_), executor);
      layer.backward.forward(own, layer.output.view().column_range(hidden_, hidden_), executor);
      input = std::as_const(layer.output).view();
    }
    return input;
  }

  /// Adds to the gradients; dx [n, in] is overwritten. For the last forward.
  void backward(MatrixView<const A> d_out, MatrixView<A> dx, ExecutorRef executor) {
    Matrix<A> upper, lower;
    upper.resize_discard(d_out.rows, d_out.cols);
    for (Index i = 0; i < d_out.rows; ++i) std::copy_n(d_out.row(i), d_out.cols, upper.row(i));
    for (std::size_t l = layers_.size(); l-- > 0;) {
      Layer& layer = layers_[l];
      lower.resize_discard(layer.input.rows(), layer.input.cols());
      const MatrixView<A> target = l > 0 ? lower.view() : dx;
      const MatrixView<const A> d = std::as_const(upper).view(), x = std::as_const(layer.input).view(),
                                y = std::as_const(layer.output).view();
      layer.forward.backward(d.column_range(0, hidden_), x, y.column_range(0, hidden_), Accumulate::kOverwrite, target,
                             executor);
      layer.backward.backward(d.column_range(hidden_, hidden_), x, y.column_range(hidden_, hidden_), Accumulate::kAdd,
                              target, executor);
      for (Index i = 0; i < target.rows && layer.mask.bits != nullptr; ++i) {
        for (Index j = 0; j < target.cols; ++j) target(i, j) = rounded(target(i, j) * kept(layer.mask, i, j));
      }
      std::swap(upper, lower);
    }
  }

  void zero_grad() noexcept {
    for (Layer& layer : layers_) {
      layer.forward.zero_grad();
      layer.backward.zero_grad();
    }
  }
  template <class Visitor>
  void for_each_parameter(Visitor& visit, std::string_view prefix) {
    for (std::size_t l = 0; l < layers_.size(); ++l) {
      layers_[l].forward.for_each_parameter(visit, prefix, static_cast<Index>(l));
      layers_[l].backward.for_each_parameter(visit, prefix, static_cast<Index>(l));
    }
  }

 private:
  struct Layer {
    LstmDirection<A> forward, backward;
    Matrix<A> input, output;
    Buffer<std::uint8_t> mask_memory;
    kernels::MaskBits mask;
  };
  /// 1/(1−p) or 0 where there is a mask, else 1.
  static A kept(const kernels::MaskBits& mask, Index row, Index column) noexcept {
    if (mask.bits == nullptr) return A(1);
    const bool keep = (mask.bits[row * mask.stride_bytes + column / 8] >> (column % 8)) & 1u;
    return keep ? static_cast<A>(mask.scale) : A(0);
  }

  std::vector<Layer> layers_;
  Index hidden_;
  float dropout_;
};

}  // namespace encoders
PEFT_END_NAMESPACE
