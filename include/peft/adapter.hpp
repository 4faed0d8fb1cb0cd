#pragma once
/// A bottleneck adapter at one site of a transformer's block: after attention or after the feed-forward. Given the
/// branch's output h, the block's residual r and the block's norm N (or none), it makes what the block hands on; without
/// an adapter that is N(h + r). With u(x) the update of bottleneck.hpp:
///   behind the block (serial)       x = h, or N(h + r) with original_ln_before (h + r where there is no norm)
///                                   o = u(x) + a,  a = h, h + r ("post_add") or x by residual_before_ln
///                                   y = N(o + r) with original_ln_after, else o
///   beside it (is_parallel)         y = N(u(r) + h + r), or u(r) + h
/// ln_after: a layer norm of u, or of u + a with adapter_residual_before_ln. As AdapterHub's adapter layer, for hosts
/// with the norm behind the sum (BERT) and before the branch (Llama, whose sums have no norm).
/// Saved for backward: S [n,b]; where a norm follows its input [n,d]; h and r stay the caller's.
/// Houlsby et al., 2019 (arXiv 1902.00751); Pfeiffer et al., 2021 (2005.00247); He et al., 2022 (2110.04366).

#include <concepts>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>

#include "peft/bottleneck.hpp"
#include "peft/error.hpp"
#include "peft/ops/block_norm.hpp"

PEFT_BEGIN_NAMESPACE

/// T is the activation type; parameters and gradients are float (double for double), as AdapterHub keeps them. A value
/// type: the block's norm is an argument of every call, and may be any BlockNorm.
template <Scalar T = float>
class Adapter {
 public:
  using value_type = T;
  using accumulator_type = Accumulator<T>;

  /// What a training forward leaves for backward. Reuse it from step to step: its memory is kept.
  struct Saved {
    typename Bottleneck<T>::Saved bottleneck;
    Matrix<T> before_ln_after;    ///< input of the adapter's norm behind the update [n, d]; only with ln_after
    Matrix<T> before_block_norm;  ///< o + r [n, d]; only where the block has a norm and original_ln_after
  };

  /// Memory that a call may use, and use again; see Bottleneck::Workspace.
  using Workspace = typename Bottleneck<T>::Workspace;

  /// The adapter of layer `layer`, its weights as reset(seed, layer) makes them. Throws ConfigError.
  Adapter(Index hidden_size, const AdapterConfig& config, Index layer = 0, std::uint64_t seed = 0)
      : options_((config.validate(), config)),
        bottleneck_(hidden_size, config.bottleneck_size(hidden_size, layer), config) {
    if (config.ln_after) norm_after_ = AdapterNorm<T>(hidden_size);
    reset(seed, static_cast<std::uint64_t>(layer));
  }

  /// The start that init_weights asks for; numbers depend on (seed, stream) only, `stream` tells sites apart. With
  /// init_weights_seed that seed counts, and every site starts alike.
  void reset(std::uint64_t seed, std::uint64_t stream = 0) {
    const bool fixed = options_.init_weights_seed.has_value();
    bottleneck_.reset(options_.init_weights, fixed ? static_cast<std::uint64_t>(*options_.init_weights_seed) : seed,
                      fixed ? 0 : stream);
    norm_after_.reset();
  }

  Index hidden_size() const noexcept { return bottleneck_.hidden_size(); }
  Index bottleneck_size() const noexcept { return bottleneck_.bottleneck_size(); }
  const AdapterConfig& config() const noexcept { return options_; }
  float dropout() const noexcept { return bottleneck_.dropout(); }

  /// Inference: y is what the block hands on. h, r, y [n,d]; y may be neither h nor r. Throws ShapeError.
  template <class Norm>
    requires ops::BlockNorm<Norm, T>
  void forward(MatrixView<const T> h, MatrixView<const T> r, Norm&& norm, MatrixView<T> y,
               ExecutorRef executor = default_executor()) const {
    Saved scratch;
    forward(h, r, norm, y, scratch, DropoutMask(), executor);
  }
  /// The same where the block has no norm.
  void forward(MatrixView<const T> h, MatrixView<const T> r, MatrixView<T> y,
               ExecutorRef executor = default_executor()) const {
    forward(h, r, ops::NoNorm(), y, executor);
  }

  /// Training: the same with `dropout` over the update, leaving in `saved` what backward needs. `work`: memory that the
  /// caller keeps from call to call, or nullptr. Throws ShapeError.
  template <class Norm>
    requires ops::BlockNorm<Norm, T>
  void forward(MatrixView<const T> h, MatrixView<const T> r, Norm&& norm, MatrixView<T> y, Saved& saved,
               const DropoutMask& dropout = {}, ExecutorRef executor = default_executor(),
               Workspace* work = nullptr) const {
    check("Adapter::forward", h, r, "y", y);
    const bool normed = has_norm<Norm>() && options_.original_ln_after;
    if (normed) saved.before_block_norm.resize_discard(h.rows, h.cols);
    const MatrixView<T> out = normed ? saved.before_block_norm.view() : y;
    const MatrixView<const T> block_residual = options_.original_ln_after ? r : MatrixView<const T>();
    Input input = input_of(h, r, norm, out, executor);
    // All but the update first, which the update's product then adds to.
    if (!options_.ln_after) {
      if (!input.in_out) {
        detail::add_rows<T>(options_.is_parallel ? h : input.residual, block_residual, out, executor);
      }
      bottleneck_.forward(input.x, saved.bottleneck, dropout, Accumulate::kAdd, out, executor, work);
    } else {
      transform(input.x, input.residual, saved, dropout, out, executor, work);
      if (options_.is_parallel) detail::add_rows<T>(h, as_const(out), out, executor);
      if (block_residual.data != nullptr) detail::add_rows<T>(block_residual, as_const(out), out, executor);
    }
    if (normed) norm.forward(as_const(out), y, executor);
  }

  /// Adds to the parameters' gradients; dh and dr are overwritten with the gradients of h and r, or, both without
  /// memory, left out (nothing below is trained). dr may be dy. h, r and `saved` are those of the forward. Throws
  /// ShapeError.
  template <class Norm>
    requires ops::BlockNorm<Norm, T>
  void backward(MatrixView<const T> dy, MatrixView<const T> h, MatrixView<const T> r, Norm&& norm, const Saved& saved,
                MatrixView<T> dh, MatrixView<T> dr, ExecutorRef executor = default_executor(), Workspace* work = nullptr) {
    check("Adapter::backward", h, r, "dy", dy);
    detail::check_shape("Adapter::backward", "S", saved.bottleneck.s.view(), h.rows, bottleneck_size());
    const bool wanted = dh.data != nullptr || dr.data != nullptr;
    if (wanted) {
      detail::check_shape("Adapter::backward", "dh", dh, h.rows, h.cols);
      detail::check_shape("Adapter::backward", "dr", dr, h.rows, h.cols);
    }
    // g = the gradient of o (+ r).
    Matrix<T> g_memory;
    MatrixView<const T> g = dy;
    if (has_norm<Norm>() && options_.original_ln_after) {
      detail::check_shape("Adapter::backward", "the norm's input", saved.before_block_norm.view(), h.rows, h.cols);
      g_memory.resize_discard(h.rows, h.cols);
      norm.backward(dy, saved.before_block_norm.view(), Accumulate::kOverwrite, g_memory.view(), executor);
      g = as_const(g_memory.view());
    }
    Input input = input_of(h, r, norm, MatrixView<T>(), executor);
    Matrix<T> du_memory;
    const auto [du, da] = backward_after(g, saved, du_memory, executor);
    if (!wanted) {
      bottleneck_.backward(du, input.x, saved.bottleneck, Accumulate::kOverwrite, MatrixView<T>(), executor, work);
      return;
    }
    const MatrixView<const T> through = options_.original_ln_after ? g : MatrixView<const T>();
    if (options_.is_parallel) {
      detail::add_rows<T>(g, {}, dh, executor);
      Matrix<T> dx(h.rows, h.cols);
      bottleneck_.backward(du, input.x, saved.bottleneck, Accumulate::kOverwrite, dx.view(), executor, work);
      detail::add_rows<T>(as_const(dx.view()), through, dr, executor);
      return;
    }
    // dh = dx + da holds unless a norm stands between h and x.
    const bool norm_before = options_.original_ln_before && has_norm<Norm>();
    if (!norm_before && (!options_.original_ln_before || input.kind != Residual::kBranch || da.data == through.data)) {
      detail::add_rows<T>(da, {}, dh, executor);
      bottleneck_.backward(du, input.x, saved.bottleneck, Accumulate::kAdd, dh, executor, work);
      if (!options_.original_ln_before) {
        through.data != nullptr ? detail::add_rows<T>(through, {}, dr, executor) : fill_zero(dr);
      } else {  // r goes where h goes; where a is h, da is g itself and counts once
        const bool once = input.kind == Residual::kBranch;
        detail::add_rows<T>(as_const(dh), once ? MatrixView<const T>() : through, dr, executor);
      }
      return;
    }
    Matrix<T> dsum(h.rows, h.cols);
    if (input.kind == Residual::kInput) {
      detail::add_rows<T>(da, {}, dsum.view(), executor);
      bottleneck_.backward(du, input.x, saved.bottleneck, Accumulate::kAdd, dsum.view(), executor, work);
    } else {
      bottleneck_.backward(du, input.x, saved.bottleneck, Accumulate::kOverwrite, dsum.view(), executor, work);
    }
    if (norm_before) {
      norm.backward(as_const(dsum.view()), as_const(input.sum), Accumulate::kOverwrite, dsum.view(), executor);
    }
    if (input.kind == Residual::kSum) detail::add_rows<T>(da, as_const(dsum.view()), dsum.view(), executor);
    detail::add_rows<T>(as_const(dsum.view()), input.kind == Residual::kBranch ? da : MatrixView<const T>(), dh,
                        executor);
    detail::add_rows<T>(as_const(dsum.view()), through, dr, executor);
  }

  void zero_grad() {
    for_each_parameter([](const ParameterInfo&, auto, VectorView<accumulator_type> grad) {
      for (accumulator_type& value : grad) value = 0;
    });
  }

  /// Visits the parameters with AdapterHub's names after `prefix`: "adapter_down.0.weight", "adapter_down.0.bias",
  /// "adapter_up.weight", …; see parameter.hpp. Vectors are [1, size].
  template <class Visitor>
  void for_each_parameter(Visitor&& visit, std::string_view prefix = {}) {
    const auto one = [&](std::string_view name, ParameterRole role, bool decay, Index rows,
                         VectorView<accumulator_type> value, VectorView<accumulator_type> grad) {
      std::string full(prefix);
      full += name;
      visit(ParameterInfo{full, role, decay, rows, value.size / rows}, value, grad);
    };
    bottleneck_.for_each(one);
    if (!norm_after_.is_set()) return;
    norm_after_.ensure_grads();
    one("adapter_norm_after.weight", ParameterRole::kOther, false, 1, norm_after_.weight.view(),
        norm_after_.grad_weight.view());
    one("adapter_norm_after.bias", ParameterRole::kBias, false, 1, norm_after_.bias.view(),
        norm_after_.grad_bias.view());
  }

  /// Numbers that are trained.
  Index parameter_count() const noexcept {
    const Index d = hidden_size(), b = bottleneck_size();
    const Index norms = (options_.ln_before ? 2 * d : 0) + (options_.ln_after ? 2 * d : 0);
    const bool channel = options_.is_scaling_trained() && std::get<std::string>(options_.scaling) == "channel";
    return 2 * b * d + b + d + norms + (channel ? d : options_.is_scaling_trained() ? 1 : 0);
  }

  // The steps of the above, for compositions of several adapters (adapter_composition.hpp). Shapes are the caller's to
  // check.

  /// What the residual around the bottleneck is.
  enum class Residual : std::uint8_t { kBranch, kSum, kInput, kNone };
  struct Input {
    MatrixView<const T> x;         ///< the bottleneck's input
    MatrixView<const T> residual;  ///< a; no memory where parallel
    Residual kind = Residual::kBranch;
    Matrix<T> sum, normed;  ///< h + r and its norm, where they are needed

    bool in_out = false;    ///< `out` holds h + r, all that the update is to be added to
  };

  /// x and a of h and r. Where h + r is all that the update is to be added to, it goes to `out` (if that has memory).
  template <class Norm>
  Input input_of(MatrixView<const T> h, MatrixView<const T> r, Norm&& norm, MatrixView<T> out,
                 ExecutorRef executor) const {
    Input input;
    input.kind = residual_kind();
    if (options_.is_parallel) {
      input.x = r;
      return input;
    }
    input.x = input.residual = h;
    if (!options_.original_ln_before) return input;
    const bool plain = !has_norm<Norm>();
    // The update is added to h + r where a is h and r is added, and where a is h + r and r is not.
    input.in_out = out.data != nullptr && !options_.ln_after &&
                   options_.original_ln_after == (input.kind == Residual::kBranch) &&
                   (plain || input.kind != Residual::kInput);
    MatrixView<T> sum = out;
    if (!input.in_out) {
      input.sum.resize_discard(h.rows, h.cols);
      sum = input.sum.view();
    }
    detail::add_rows<T>(h, r, sum, executor);
    input.x = as_const(sum);
    if (!plain) {
      input.normed.resize_discard(h.rows, h.cols);
      norm.forward(as_const(sum), input.normed.view(), executor);
      input.x = as_const(input.normed.view());
    }
    if (input.kind == Residual::kSum) input.residual = as_const(sum);
    if (input.kind == Residual::kInput) input.residual = input.x;
    return input;
  }

  /// o = the update of x with its own norm and the residual a (none where parallel).
  void transform(MatrixView<const T> x, MatrixView<const T> a, Saved& saved, const DropoutMask& dropout,
                 MatrixView<T> o, ExecutorRef executor, Workspace* work = nullptr) const {
    if (!options_.ln_after) {
      if (a.data != nullptr) detail::add_rows<T>(a, {}, o, executor);
      bottleneck_.forward(x, saved.bottleneck, dropout,
                          a.data != nullptr ? Accumulate::kAdd : Accumulate::kOverwrite, o, executor, work);
      return;
    }
    saved.before_ln_after.resize_discard(x.rows, x.cols);
    const MatrixView<T> u = saved.before_ln_after.view();
    const bool first = a.data != nullptr && options_.adapter_residual_before_ln;
    if (first) detail::add_rows<T>(a, {}, u, executor);
    bottleneck_.forward(x, saved.bottleneck, dropout, first ? Accumulate::kAdd : Accumulate::kOverwrite, u, executor, work);
    norm_after_.forward(as_const(u), o, executor);
    if (a.data != nullptr && !first) detail::add_rows<T>(a, as_const(o), o, executor);
  }

  /// Gradients of transform given that of o: dx is overwritten; da is returned (it may be `d_o` itself, or stand in
  /// `memory`).
  MatrixView<const T> backward_transform(MatrixView<const T> d_o, MatrixView<const T> x, const Saved& saved,
                                         Matrix<T>& memory, MatrixView<T> dx, ExecutorRef executor) {
    const auto [du, da] = backward_after(d_o, saved, memory, executor);
    bottleneck_.backward(du, x, saved.bottleneck, Accumulate::kOverwrite, dx, executor);
    return da;
  }

  /// Gradients of input_of given those of x and of a (no memory: none): dh is overwritten, dr added to; dx is used up.
  template <class Norm>
  void backward_input(const Input& input, Norm&& norm, MatrixView<T> dx, MatrixView<const T> da, MatrixView<T> dh,
                      MatrixView<T> dr, ExecutorRef executor) const {
    if (options_.is_parallel) {
      fill_zero(dh);
      detail::add_rows<T>(as_const(dx), as_const(dr), dr, executor);
      return;
    }
    const bool given = da.data != nullptr;
    if (options_.original_ln_before) {
      if (given && input.kind == Residual::kInput) detail::add_rows<T>(da, as_const(dx), dx, executor);
      if (has_norm<Norm>()) {
        norm.backward(as_const(dx), as_const(input.sum), Accumulate::kOverwrite, dx, executor);
      }
      if (given && input.kind == Residual::kSum) detail::add_rows<T>(da, as_const(dx), dx, executor);
      detail::add_rows<T>(as_const(dx), as_const(dr), dr, executor);
    }
    const bool own = given && (!options_.original_ln_before || input.kind == Residual::kBranch);
    detail::add_rows<T>(as_const(dx), own ? da : MatrixView<const T>(), dh, executor);
  }

  Bottleneck<T>& bottleneck() noexcept { return bottleneck_; }
  const Bottleneck<T>& bottleneck() const noexcept { return bottleneck_; }

 private:
  template <class Norm>
  static constexpr bool has_norm() noexcept {
    return !std::same_as<std::remove_cvref_t<Norm>, ops::NoNorm>;
  }
  static MatrixView<const T> as_const(MatrixView<T> view) noexcept { return view; }
  static MatrixView<const T> as_const(const Matrix<T>& matrix) noexcept { return matrix.view(); }

  Residual residual_kind() const noexcept {
    if (options_.is_parallel) return Residual::kNone;
    if (!options_.original_ln_before) return Residual::kBranch;
    if (options_.is_post_add()) return Residual::kSum;
    return std::get<bool>(options_.residual_before_ln) ? Residual::kBranch : Residual::kInput;
  }

  struct After {
    MatrixView<const T> du, da;
  };
  /// Gradients of the update and of a, given that of o.
  After backward_after(MatrixView<const T> d_o, const Saved& saved, Matrix<T>& memory, ExecutorRef executor) {
    if (!options_.ln_after) return {d_o, d_o};
    memory.resize_discard(d_o.rows, d_o.cols);
    detail::check_shape("Adapter::backward", "ln_after's input", saved.before_ln_after.view(), d_o.rows, d_o.cols);
    norm_after_.backward(d_o, saved.before_ln_after.view(), Accumulate::kOverwrite, memory.view(), executor);
    const MatrixView<const T> du = as_const(memory.view());
    return {du, options_.adapter_residual_before_ln ? du : d_o};
  }

  static void fill_zero(MatrixView<T> view) noexcept {
    const std::size_t bytes = sizeof(T) * static_cast<std::size_t>(view.cols);
    for (Index i = 0; i < view.rows; ++i) std::memset(static_cast<void*>(view.row(i)), 0, bytes);
  }

  template <class Y>
  void check(std::string_view who, MatrixView<const T> h, MatrixView<const T> r, std::string_view what,
             MatrixView<Y> y) const {
    detail::check_shape(who, "h (the branch's output)", h, h.rows, hidden_size());
    detail::check_shape(who, "r (the block's residual)", r, h.rows, hidden_size());
    detail::check_shape(who, what, y, h.rows, hidden_size());
  }

  AdapterConfig options_;
  Bottleneck<T> bottleneck_;
  AdapterNorm<T> norm_after_;
};

PEFT_END_NAMESPACE
