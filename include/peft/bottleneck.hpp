#pragma once
/// The inside of an adapter, its update of a hidden state of d units through b:
///   S = norm(x)·Dᵀ + e,  u = m ∘ c∘(f(S)·Uᵀ + g)      x, u [n,d], S [n,b]; D [b,d], e [b], U [d,b], g [d]
/// with f the non-linearity, c the scaling (a number, or one per unit), m a dropout mask and its 1/(1-p), norm a layer
/// norm or nothing. Saved for backward: S and the mask's key; norm(x) and f(S) are made again. With d̂ = m∘du and
/// G = d̂ᵀ·f(S):
///   dU += c∘G,  dg += c∘Σd̂,  dc = Σ_b U∘G + g∘Σd̂,  dS = ((c∘d̂)·U)∘f'(S),  dD += dSᵀ·norm(x),  de += ΣdS,  dx = dS·D
/// (dc for one factor: the sum over the units).

#include <algorithm>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "peft/adapter_config.hpp"
#include "peft/adapter_norm.hpp"
#include "peft/core/parallel.hpp"
#include "peft/core/rng.hpp"
#include "peft/dropout_mask.hpp"
#include "peft/matrix_product.hpp"
#include "peft/ops/activation.hpp"
#include "peft/parameter.hpp"

PEFT_BEGIN_NAMESPACE

/// T is the activation type; parameters and gradients are float (double for double).
template <Scalar T = float>
class Bottleneck {
 public:
  using A = Accumulator<T>;

  struct Saved {
    Matrix<A> s;  ///< S [n, b]
    DropoutMask dropout;
  };
  /// Memory of one call, for those who call often: with one that is kept nothing is allocated. One thread at a time.
  struct Workspace {
    Matrix<A> active, ds, up, bias;
    Matrix<T> normed, dropped, dnormed;
    Buffer<std::uint8_t> bits;
    Buffer<A> ones;
  };

  /// Weights zero; see reset(). Throws ConfigError.
  Bottleneck(Index hidden_size, Index bottleneck_size, const AdapterConfig& config)
      : activation_(*activation_named(config.non_linearity)), dropout_(config.dropout) {
    if (hidden_size < 1 || bottleneck_size < 1) {
      fail<ConfigError>("Adapter: hidden size {}, bottleneck {}; expected each at least 1", hidden_size,
                        bottleneck_size);
    }
    down_ = Matrix<A>::zeros(bottleneck_size, hidden_size);
    down_bias_ = Matrix<A>::zeros(1, bottleneck_size);
    up_ = Matrix<A>::zeros(hidden_size, bottleneck_size);
    up_bias_ = Matrix<A>::zeros(1, hidden_size);
    if (config.ln_before) norm_before_ = AdapterNorm<T>(hidden_size);
    trained_scaling_ = config.is_scaling_trained();
    if (!trained_scaling_) {
      scaling_ = Matrix<A>(1, 1);
      scaling_(0, 0) = static_cast<A>(std::get<double>(config.scaling));
    } else {
      scaling_ = Matrix<A>(1, std::get<std::string>(config.scaling) == "channel" ? hidden_size : 1);
      for (A& value : scaling_.flat()) value = 1;
    }
  }

  Index hidden_size() const noexcept { return down_.cols(); }
  Index bottleneck_size() const noexcept { return down_.rows(); }
  Activation activation() const noexcept { return activation_; }
  float dropout() const noexcept { return dropout_; }
  bool has_norm_before() const noexcept { return norm_before_.is_set(); }

  /// `init_weights` of AdapterConfig; numbers depend on (seed, stream) only.
  void reset(std::string_view init_weights, std::uint64_t seed, std::uint64_t stream) {
    Philox random(seed, stream);
    const auto normal = [&random](Matrix<A>& weight, float deviation, float most) {
      for (A& value : weight.flat()) {
        float draw = random.normal();
        while (most > 0 && (draw > most || draw < -most)) draw = random.normal();
        value = deviation * draw;
      }
    };
    down_bias_.fill_zero();
    up_bias_.fill_zero();
    if (init_weights == "mam_adapter") {
      const float bound = quotient(1.0f, root(static_cast<float>(hidden_size())));
      for (A& value : down_.flat()) value = random.uniform(-bound, bound);
      up_.fill_zero();
    } else {
      const bool bert = init_weights == "bert";
      normal(down_, bert ? 0.02f : 0.01f, bert ? 0.0f : 2.0f);
      normal(up_, bert ? 0.02f : 0.01f, bert ? 0.0f : 2.0f);
    }
    norm_before_.reset();
    if (trained_scaling_) {
      for (A& value : scaling_.flat()) value = 1;
    }
  }

  /// target (+)= u, leaving S in `saved`. Shapes are the caller's to check; target is not x where it is overwritten.
  void forward(MatrixView<const T> x, Saved& saved, const DropoutMask& dropout, Accumulate mode, MatrixView<T> target,
               ExecutorRef executor, Workspace* kept = nullptr) const {
    Workspace own;
    Workspace& work = kept != nullptr ? *kept : own;
    saved.dropout = dropout;
    saved.s.resize_discard(x.rows, bottleneck_size());
    if (x.rows == 0) return;
    detail::multiply<T, A, A>(detail::plain<T>(norm_input(x, work.normed, executor)), detail::transpose<A>(view(down_)),
                              flat(down_bias_), Accumulate::kOverwrite, saved.s.view(), executor);
    Matrix<A>& active = work.active;
    active.resize_discard(x.rows, bottleneck_size());
    ops::activation_forward<A>(activation_, saved.s.view(), active.view(), executor);
    MatrixView<const A> up = view(up_);
    VectorView<const A> bias = flat(up_bias_);
    if (!is_per_channel() && factor() != A(1)) {
      detail::scale_values<A>(active.flat(), factor());
      copy(up_bias_, work.bias);
      detail::scale_values<A>(work.bias.flat(), factor());
      bias = flat(work.bias);
    } else if (is_per_channel()) {
      up = scaled_up(work.up);
      copy(up_bias_, work.bias);
      for (Index j = 0; j < hidden_size(); ++j) work.bias(0, j) *= scaling_(0, j);
      bias = flat(work.bias);
    }
    const kernels::MaskBits mask = dropout.bits(x.rows, hidden_size(), dropout_, work.bits, executor);
    if (mask.bits == nullptr) {
      detail::multiply<A, A, T>(detail::plain<A>(view(active)), detail::transpose<A>(up), bias, mode, target, executor);
    } else {
      masked_expand(view(active), up, bias, mask, mode, target, work.ones, executor);
    }
  }

  /// Adds to the parameters' gradients; dx (+)= the gradient of x, or nothing where dx.data is null. dx may be neither
  /// du nor x.
  void backward(MatrixView<const T> du, MatrixView<const T> x, const Saved& saved, Accumulate mode, MatrixView<T> dx,
                ExecutorRef executor, Workspace* kept = nullptr) {
    Workspace own;
    Workspace& work = kept != nullptr ? *kept : own;
    ensure_grads();
    const Index n = x.rows, b = bottleneck_size();
    if (n == 0) return;
    const MatrixView<const T> d = masked(du, saved.dropout, work, executor);
    Matrix<A>&active = work.active, &ds = work.ds;
    active.resize_discard(n, b);
    ds.resize_discard(n, b);
    ops::activation_forward<A>(activation_, view(saved.s), active.view(), executor);
    MatrixView<const A> up = view(up_);
    if (!trained_scaling_) {
      detail::scale_values<A>(active.flat(), factor());
      detail::multiply<T, A, A>(detail::transpose<T>(d), detail::plain<A>(view(active)), {}, Accumulate::kAdd,
                                grad_up_.view(), executor);
      detail::add_column_sums<T>(d, factor(), grad_up_bias_.flat(), executor);
    } else {
      if (is_per_channel()) up = scaled_up(work.up);
      trained_scaling_gradients(d, view(active), executor);
    }
    detail::multiply<T, A, A>(detail::plain<T>(d), detail::plain<A>(up), {}, Accumulate::kOverwrite, ds.view(), executor);
    if (!is_per_channel()) detail::scale_values<A>(ds.flat(), factor());
    ops::activation_backward<A>(activation_, view(ds), view(saved.s), ds.view(), executor);
    detail::add_column_sums<A>(view(ds), A(1), grad_down_bias_.flat(), executor);
    const MatrixView<const T> input = norm_input(x, work.normed, executor);
    detail::multiply<A, T, A>(detail::transpose<A>(view(ds)), detail::plain<T>(input), {}, Accumulate::kAdd,
                              grad_down_.view(), executor);
    if (dx.data == nullptr && !has_norm_before()) return;
    const detail::Factor<A> left = detail::plain<A>(view(ds)), right = detail::plain<A>(view(down_));
    if (!has_norm_before()) {
      detail::multiply<A, A, T>(left, right, {}, mode, dx, executor);
    } else {
      work.dnormed.resize_discard(n, hidden_size());
      detail::multiply<A, A, T>(left, right, {}, Accumulate::kOverwrite, work.dnormed.view(), executor);
      norm_before_.backward(view(work.dnormed), x, mode, dx, executor);
    }
  }

  void ensure_grads() {
    norm_before_.ensure_grads();
    if (!grad_down_.empty()) return;
    grad_down_ = Matrix<A>::zeros(down_.rows(), down_.cols());
    grad_down_bias_ = Matrix<A>::zeros(1, down_bias_.cols());
    grad_up_ = Matrix<A>::zeros(up_.rows(), up_.cols());
    grad_up_bias_ = Matrix<A>::zeros(1, up_bias_.cols());
    grad_scaling_ = Matrix<A>::zeros(1, scaling_.cols());
  }

  /// In AdapterHub's order and with its names; visit(name, role, decay, value, grad).
  template <class Visit>
  void for_each(Visit&& visit) {
    ensure_grads();
    if (trained_scaling_) visit("scaling", ParameterRole::kOther, true, 1, scaling_.flat(), grad_scaling_.flat());
    if (has_norm_before()) {
      visit("adapter_norm_before.weight", ParameterRole::kOther, false, 1, norm_before_.weight.view(),
            norm_before_.grad_weight.view());
      visit("adapter_norm_before.bias", ParameterRole::kBias, false, 1, norm_before_.bias.view(),
            norm_before_.grad_bias.view());
    }
    // adapter_down is a sequence: [norm], linear, non-linearity.
    const std::string down = has_norm_before() ? "adapter_down.1." : "adapter_down.0.";
    visit(down + "weight", ParameterRole::kOther, true, bottleneck_size(), down_.flat(), grad_down_.flat());
    visit(down + "bias", ParameterRole::kBias, false, 1, down_bias_.flat(), grad_down_bias_.flat());
    visit("adapter_up.weight", ParameterRole::kOther, true, hidden_size(), up_.flat(), grad_up_.flat());
    visit("adapter_up.bias", ParameterRole::kBias, false, 1, up_bias_.flat(), grad_up_bias_.flat());
  }

 private:
  template <class X>
  static MatrixView<const X> view(const Matrix<X>& matrix) noexcept {
    return matrix.view();
  }
  static VectorView<const A> flat(const Matrix<A>& matrix) noexcept { return matrix.flat(); }
  bool is_per_channel() const noexcept { return scaling_.cols() > 1; }
  A factor() const noexcept { return scaling_(0, 0); }

  /// x, or its norm in `memory`.
  MatrixView<const T> norm_input(MatrixView<const T> x, Matrix<T>& memory, ExecutorRef executor) const {
    if (!has_norm_before()) return x;
    memory.resize_discard(x.rows, x.cols);
    norm_before_.forward(x, memory.view(), executor);
    return view(memory);
  }

  static void copy(const Matrix<A>& from, Matrix<A>& to) {
    to.resize_discard(from.rows(), from.cols());
    std::copy_n(from.data(), from.size(), to.data());
  }
  /// c∘U, in `memory`.
  MatrixView<const A> scaled_up(Matrix<A>& memory) const {
    copy(up_, memory);
    for (Index j = 0; j < memory.rows(); ++j) {
      detail::scale_values<A>(VectorView<A>(memory.row(j), memory.cols()), scaling_(0, j));
    }
    return view(memory);
  }

  /// du, or its product with the mask.
  MatrixView<const T> masked(MatrixView<const T> du, const DropoutMask& dropout, Workspace& work,
                             ExecutorRef executor) const {
    const kernels::MaskBits mask = dropout.bits(du.rows, du.cols, dropout_, work.bits, executor);
    if (mask.bits == nullptr) return du;
    Matrix<T>& memory = work.dropped;
    memory.resize_discard(du.rows, du.cols);
    const Index n = du.cols;
    parallel_for_ranges(executor, du.rows, 16, [&](Index first, Index last) {
      for (Index i = first; i < last; ++i) {
        if constexpr (std::same_as<T, double>) {
          for (Index j = 0; j < n; ++j) {
            memory(i, j) = static_cast<double>(detail::mask_factor(mask, i, j)) * du(i, j);
          }
        } else {
          const kernels::KernelTable& t = kernels::table();
          float* row = kernels::scratch(kernels::ScratchSlot::kRows, n);
          t.widen(n, du.row(i), dtype_of<T>(), row);
          t.apply_mask(n, mask.bits + i * mask.stride_bytes, 0, n, mask.scale, row);
          t.narrow(n, row, dtype_of<T>(), memory.row(i));
        }
      }
    });
    return view(memory);
  }

  /// target (+)= mask∘(active·upᵀ + bias): the bias is one more column, so that the mask multiplies it too.
  static void masked_expand(MatrixView<const A> active, MatrixView<const A> up, VectorView<const A> bias,
                            const kernels::MaskBits& mask, Accumulate mode, MatrixView<T> target, Buffer<A>& ones,
                            ExecutorRef executor) {
    if constexpr (std::same_as<T, double>) {
      Matrix<double> fresh(target.rows, target.cols);
      detail::multiply<A, A, T>(detail::plain<A>(active), detail::transpose<A>(up), bias, Accumulate::kOverwrite,
                                fresh.view(), executor);
      for (Index i = 0; i < target.rows; ++i) {
        for (Index j = 0; j < target.cols; ++j) {
          const double value = static_cast<double>(detail::mask_factor(mask, i, j)) * fresh(i, j);
          target(i, j) = mode == Accumulate::kAdd ? target(i, j) + value : value;
        }
      }
    } else {
      ones.resize_discard(active.rows);
      for (float& value : ones) value = 1.0f;
      const kernels::LowRankColumns columns[] = {
          {active.data, active.stride, active.cols, up.data, up.stride, true, 1.0f},
          {ones.data(), 1, 1, bias.data, 1, true, 1.0f}};
      kernels::GemmProblem problem;
      problem.m = target.rows;
      problem.n = target.cols;
      problem.low_rank = columns;
      problem.low_rank_count = 2;
      problem.low_rank_mask = mask;
      problem.accumulate = mode == Accumulate::kAdd;
      problem.c = target.data;
      problem.c_stride = target.stride;
      problem.c_type = dtype_of<T>();
      kernels::gemm(problem, executor);
    }
  }

  /// dU += c∘G, dg += c∘Σd̂, dc += ΣU∘G + g∘Σd̂.
  void trained_scaling_gradients(MatrixView<const T> d, MatrixView<const A> active, ExecutorRef executor) {
    Matrix<A> g(hidden_size(), bottleneck_size()), sums = Matrix<A>::zeros(1, hidden_size());
    detail::multiply<T, A, A>(detail::transpose<T>(d), detail::plain<A>(active), {}, Accumulate::kOverwrite, g.view(),
                              executor);
    detail::add_column_sums<T>(d, A(1), sums.flat(), executor);
    for (Index j = 0; j < hidden_size(); ++j) {
      const Index which = is_per_channel() ? j : 0;
      const A factor = scaling_(0, which);
      A inner = rounded(up_bias_(0, j) * sums(0, j));
      for (Index q = 0; q < bottleneck_size(); ++q) {
        inner = rounded(inner + rounded(up_(j, q) * g(j, q)));
        grad_up_(j, q) += rounded(factor * g(j, q));
      }
      grad_up_bias_(0, j) += rounded(factor * sums(0, j));
      grad_scaling_(0, which) = rounded(grad_scaling_(0, which) + inner);
    }
  }

  Matrix<A> down_, down_bias_, up_, up_bias_, scaling_;
  Matrix<A> grad_down_, grad_down_bias_, grad_up_, grad_up_bias_, grad_scaling_;
  AdapterNorm<T> norm_before_;
  Activation activation_;
  float dropout_;
  bool trained_scaling_ = false;
};

PEFT_END_NAMESPACE
