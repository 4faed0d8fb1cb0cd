#pragma once
/// AdapterFusion: attention over the updates u_1 … u_k that k adapters have for one site.
///   q = query·Wqᵀ + bq,  s_i = q·(Wk·u_i + bk)/τ,  p = softmax(s),  y = Wv·Σ p_i·u_i + r
/// query, u_i, r, y [n,d], the matrices [d,d]. With residual_before u_i + r stands for u_i and r is not added again. As
/// computed here: q̃ = q·Wk, so that one product serves all u_i (s_i = (q̃·u_i + q·bk)/τ), and Wv after the sum.
/// Saved for backward: q, q̃, Σ p_i·u_i [n,d] and p [n,k]. With dc = dy·Wv, dp_i = dc·u_i, ds = softmax backward/τ:
///   du_i = p_i·dc + ds_i·q̃,  dq̃ = Σ ds_i·u_i,  dWv += dyᵀ·Σ p_i·u_i,  dWk += qᵀ·dq̃,  dq = dq̃·Wkᵀ,  dWq += dqᵀ·query
/// Pfeiffer et al., "AdapterFusion: Non-Destructive Task Composition for Transfer Learning", 2021 (arXiv 2005.00247).

#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "peft/adapter_fusion_config.hpp"
#include "peft/core/parallel.hpp"
#include "peft/core/rng.hpp"
#include "peft/dropout_mask.hpp"
#include "peft/matrix_product.hpp"
#include "peft/parameter.hpp"

PEFT_BEGIN_NAMESPACE

/// T is the activation type; parameters and gradients are float (double for double).
template <Scalar T = float>
class AdapterFusion {
 public:
  using value_type = T;
  using accumulator_type = Accumulator<T>;
  using A = Accumulator<T>;

  struct Saved {
    Matrix<A> q;        ///< [n, d]; only with a query matrix
    Matrix<A> q_keyed;  ///< q̃ [n, d]; only with a key matrix
    Matrix<A> mixed;    ///< Σ p_i·u_i [n, d]
    Matrix<A> p;        ///< [n, k]
    DropoutMask dropout;
  };

  /// Weights as reset(seed) makes them. `attention_dropout`: the model's, where the configuration has none. Throws
  /// ConfigError.
  AdapterFusion(Index hidden_size, const AdapterFusionConfig& config, float attention_dropout = 0.0f,
                std::uint64_t seed = 0)
      : config_((config.validate(), config)), hidden_size_(hidden_size) {
    if (hidden_size < 1) fail<ConfigError>("AdapterFusion: hidden size {}; expected at least 1", hidden_size);
    // As Python's `or` reads it: a dropout_prob of 0 is none.
    dropout_ = config.dropout_prob.value_or(0.0f) > 0.0f ? *config.dropout_prob : attention_dropout;
    if (!is_finite(dropout_) || dropout_ < 0.0f || dropout_ >= 1.0f) {
      fail<ConfigError>("AdapterFusion: attention_dropout is {}; expected a probability p with 0 <= p < 1", dropout_);
    }
    if (config.query) query_ = Linear(hidden_size, true);
    if (config.key) key_ = Linear(hidden_size, true);
    if (config.value) value_ = Linear(hidden_size, false);
    if (config.temperature) temperature_ = 50.0;
    reset(seed);
  }

  /// Normal with standard deviation 0.02, biases 0; the value's matrix 1 on its diagonal and 1e-6 beside it where
  /// `value_initialized`. Numbers depend on (seed, stream) only.
  void reset(std::uint64_t seed, std::uint64_t stream = 0) {
    Philox random(seed, stream);
    for (Linear* linear : {&query_, &key_, &value_}) {
      for (A& value : linear->weight.flat()) value = 0.02f * random.normal();
      linear->bias.fill_zero();
    }
    if (!config_.value || !config_.value_initialized) return;
    for (Index i = 0; i < hidden_size_; ++i) {
      for (Index j = 0; j < hidden_size_; ++j) value_.weight(i, j) = i == j ? A(1) : A(1e-6f);
    }
  }

  Index hidden_size() const noexcept { return hidden_size_; }
  const AdapterFusionConfig& config() const noexcept { return config_; }
  float dropout() const noexcept { return dropout_; }
  double temperature() const noexcept { return temperature_; }
  void set_temperature(double value) noexcept { temperature_ = value; }
  /// With `temperature`: 0.05 less, down to 1. AdapterHub does it in every forward pass of the layer; here it is the
  /// trainer's, once per step, so that passes change nothing.
  void anneal() noexcept {
    if (config_.temperature) temperature_ = std::max(temperature_ - 0.05, 1.0);
  }

  /// y, overwritten. `updates`: the u_i, at least one. Throws ShapeError.
  void forward(MatrixView<const T> query, std::span<const MatrixView<const T>> updates, MatrixView<const T> r,
               MatrixView<T> y, Saved& saved, const DropoutMask& dropout = {},
               ExecutorRef executor = default_executor()) const {
    check("AdapterFusion::forward", query, updates, r, y);
    const Index n = query.rows, d = hidden_size_, k = static_cast<Index>(updates.size());
    saved.dropout = dropout;
    project(query, saved, executor);
    saved.mixed.resize_discard(n, d);
    saved.p.resize_discard(n, k);
    Buffer<std::uint8_t> bits;
    const kernels::MaskBits mask = dropout.bits(n, k, dropout_, bits, executor);
    Matrix<A> own_query;
    const MatrixView<const A> q = used_query(query, saved, own_query), keyed = keyed_query(q, saved);
    each_row(n, executor, [&](Index i, A* memory) {
      A* p = saved.p.row(i);
      A shared = 0;
      if (config_.key) shared = dot(q.row(i), key_.bias.data(), d);
      if (config_.residual_before) shared = rounded(shared + dot(keyed.row(i), widened(r.row(i), d, memory), d));
      A largest = 0, sum = 0;
      for (Index a = 0; a < k; ++a) {
        const A raw = dot(keyed.row(i), widened(updates[static_cast<std::size_t>(a)].row(i), d, memory), d);
        const A score = rounded(rounded(raw + shared) * static_cast<A>(detail::mask_factor(mask, i, a)));
        p[a] = quotient(score, static_cast<A>(temperature_));
        largest = a == 0 || p[a] > largest ? p[a] : largest;
      }
      for (Index a = 0; a < k; ++a) {
        p[a] = rounded(std::exp(p[a] - largest));
        sum = rounded(sum + p[a]);
      }
      A* mixed = saved.mixed.row(i);
      std::fill_n(mixed, d, A(0));
      for (Index a = 0; a < k; ++a) {
        p[a] = quotient(p[a], sum);
        axpy(p[a], widened(updates[static_cast<std::size_t>(a)].row(i), d, memory), mixed, d);
      }
      if (config_.residual_before) axpy(A(1), widened(r.row(i), d, memory), mixed, d);
    });
    // y = mixed·Wvᵀ (+ r)
    const Accumulate mode = config_.residual_before ? Accumulate::kOverwrite : Accumulate::kAdd;
    if (mode == Accumulate::kAdd) detail::add_rows<T>(r, {}, y, executor);
    if (config_.value) {
      detail::multiply<A, A, T>(detail::plain<A>(view(saved.mixed)), detail::transpose<A>(view(value_.weight)), {}, mode,
                                y, executor);
    } else {
      each_row(n, executor, [&](Index i, A*) {
        for (Index j = 0; j < d; ++j) {
          const A before = mode == Accumulate::kAdd ? static_cast<A>(y(i, j)) : A(0);
          y(i, j) = static_cast<T>(before + saved.mixed(i, j));
        }
      });
    }
  }

  /// Adds to the parameters' gradients; dquery, every dupdates[i] and dr are overwritten and alias nothing. Throws
  /// ShapeError.
  void backward(MatrixView<const T> dy, MatrixView<const T> query, std::span<const MatrixView<const T>> updates,
                MatrixView<const T> r, const Saved& saved, MatrixView<T> dquery, std::span<const MatrixView<T>> dupdates,
                MatrixView<T> dr, ExecutorRef executor = default_executor()) {
    check("AdapterFusion::backward", query, updates, r, dy);
    const Index n = query.rows, d = hidden_size_, k = static_cast<Index>(updates.size());
    detail::check_shape("AdapterFusion::backward", "p", saved.p.view(), n, k);
    if (dupdates.size() != updates.size()) {
      fail<ShapeError>("AdapterFusion::backward: {} gradients for {} updates", dupdates.size(), updates.size());
    }
    ensure_grads();
    Matrix<A> dmixed(n, d), dkeyed(n, d), own_query;
    if (config_.value) {
      detail::multiply<T, A, A>(detail::transpose<T>(dy), detail::plain<A>(view(saved.mixed)), {}, Accumulate::kAdd,
                                value_.grad_weight.view(), executor);
      detail::multiply<T, A, A>(detail::plain<T>(dy), detail::plain<A>(view(value_.weight)), {}, Accumulate::kOverwrite,
                                dmixed.view(), executor);
    } else {
      for (Index i = 0; i < n; ++i) {
        for (Index j = 0; j < d; ++j) dmixed(i, j) = static_cast<A>(dy(i, j));
      }
    }
    Buffer<std::uint8_t> bits;
    const kernels::MaskBits mask = saved.dropout.bits(n, k, dropout_, bits, executor);
    const MatrixView<const A> q = used_query(query, saved, own_query), keyed = keyed_query(q, saved);
    Matrix<A> shared = Matrix<A>::zeros(n, 1);  // Σ ds_i: what all scores have in common
    each_row(n, executor, [&](Index i, A* memory) {
      const A* p = saved.p.row(i);
      A *const ds = memory + d, *const du = ds + k;
      A inner = 0;
      for (Index a = 0; a < k; ++a) {
        ds[a] = dot(dmixed.row(i), widened(updates[static_cast<std::size_t>(a)].row(i), d, memory), d);
        inner = rounded(inner + rounded(p[a] * ds[a]));
      }
      std::fill_n(dkeyed.row(i), d, A(0));
      for (Index a = 0; a < k; ++a) {
        const A slope = quotient(rounded(p[a] * (ds[a] - inner)), static_cast<A>(temperature_));
        ds[a] = rounded(slope * static_cast<A>(detail::mask_factor(mask, i, a)));
        shared(i, 0) = rounded(shared(i, 0) + ds[a]);
        axpy(ds[a], widened(updates[static_cast<std::size_t>(a)].row(i), d, memory), dkeyed.row(i), d);
        std::fill_n(du, d, A(0));
        axpy(p[a], dmixed.row(i), du, d);
        axpy(ds[a], keyed.row(i), du, d);
        for (Index j = 0; j < d; ++j) dupdates[static_cast<std::size_t>(a)](i, j) = static_cast<T>(du[j]);
      }
      if (config_.residual_before) {
        axpy(shared(i, 0), widened(r.row(i), d, memory), dkeyed.row(i), d);
        std::copy_n(dmixed.row(i), d, du);
        axpy(shared(i, 0), keyed.row(i), du, d);
        for (Index j = 0; j < d; ++j) dr(i, j) = static_cast<T>(du[j]);
      }
    });
    if (!config_.residual_before) detail::add_rows<T>(dy, {}, dr, executor);
    backward_query(query, q, view(dkeyed), view(shared), dquery, executor);
  }

  /// 0.01·Σ (Wv − I)²: what AdapterHub adds to the loss for `regularization`.
  double regularization_loss() const noexcept {
    double sum = 0;
    for (Index i = 0; i < value_.weight.rows(); ++i) {
      for (Index j = 0; j < value_.weight.cols(); ++j) {
        const double off = static_cast<double>(value_.weight(i, j)) - (i == j ? 1.0 : 0.0);
        sum = rounded(sum + rounded(off * off));
      }
    }
    return 0.01 * sum;
  }
  /// Adds `weight` times its gradient.
  void add_regularization_gradient(double weight = 1.0) {
    ensure_grads();
    const auto factor = static_cast<A>(0.02 * weight);
    for (Index i = 0; i < value_.weight.rows(); ++i) {
      for (Index j = 0; j < value_.weight.cols(); ++j) {
        value_.grad_weight(i, j) += rounded(factor * (value_.weight(i, j) - (i == j ? A(1) : A(0))));
      }
    }
  }

  void zero_grad() {
    for_each_parameter([](const ParameterInfo&, auto, VectorView<A> grad) { std::fill_n(grad.data, grad.size, A(0)); });
  }

  /// "query.weight", "query.bias", "key.weight", "key.bias", "value.weight" after `prefix`, those that there are.
  template <class Visitor>
  void for_each_parameter(Visitor&& visit, std::string_view prefix = {}) {
    ensure_grads();
    const auto one = [&](std::string_view name, ParameterRole role, Matrix<A>& value, Matrix<A>& grad) {
      if (value.empty()) return;
      std::string full(prefix);
      full += name;
      visit(ParameterInfo{full, role, role != ParameterRole::kBias, value.rows(), value.cols()}, value.flat(),
            grad.flat());
    };
    one("query.weight", ParameterRole::kOther, query_.weight, query_.grad_weight);
    one("query.bias", ParameterRole::kBias, query_.bias, query_.grad_bias);
    one("key.weight", ParameterRole::kOther, key_.weight, key_.grad_weight);
    one("key.bias", ParameterRole::kBias, key_.bias, key_.grad_bias);
    one("value.weight", ParameterRole::kOther, value_.weight, value_.grad_weight);
  }

 private:
  struct Linear {
    Matrix<A> weight, bias, grad_weight, grad_bias;
    Linear() = default;
    Linear(Index size, bool with_bias) : weight(size, size), bias(1, with_bias ? size : 0) {}
    void ensure_grads() {
      if (!grad_weight.empty() || weight.empty()) return;
      grad_weight = Matrix<A>::zeros(weight.rows(), weight.cols());
      grad_bias = Matrix<A>::zeros(1, bias.cols());
    }
  };

  void ensure_grads() {
    for (Linear* linear : {&query_, &key_, &value_}) linear->ensure_grads();
  }
  static MatrixView<const A> view(const Matrix<A>& matrix) noexcept { return matrix.view(); }

  /// body(row, memory for 3·d + k numbers).
  template <class Body>
  void each_row(Index n, ExecutorRef executor, Body&& body) const {
    parallel_for_ranges(executor, n, 8, [&](Index first, Index last) {
      Buffer<A> memory(kMostUpdates + 3 * hidden_size_);
      for (Index i = first; i < last; ++i) body(i, memory.data());
    });
  }

  static const A* widened(const T* row, Index n, A* memory) noexcept {
    if constexpr (std::same_as<T, A>) {
      (void)n, (void)memory;
      return row;
    } else {
      kernels::table().widen(n, row, dtype_of<T>(), memory);
      return memory;
    }
  }
  static A dot(const A* x, const A* y, Index n) noexcept {
    if constexpr (std::same_as<A, double>) {
      double sum = 0;
      for (Index j = 0; j < n; ++j) sum += x[j] * y[j];
      return sum;
    } else {
      return kernels::table().dot(n, x, y);
    }
  }
  static void axpy(A factor, const A* x, A* y, Index n) noexcept {
    if constexpr (std::same_as<A, double>) {
      for (Index j = 0; j < n; ++j) y[j] += factor * x[j];
    } else {
      kernels::table().axpy(n, factor, x, y);
    }
  }

  /// q and q̃.
  void project(MatrixView<const T> query, Saved& saved, ExecutorRef executor) const {
    const Index n = query.rows, d = hidden_size_;
    if (config_.query) {
      saved.q.resize_discard(n, d);
      detail::multiply<T, A, A>(detail::plain<T>(query), detail::transpose<A>(view(query_.weight)), query_.bias.flat(),
                                Accumulate::kOverwrite, saved.q.view(), executor);
    }
    if (!config_.key) return;
    saved.q_keyed.resize_discard(n, d);
    const auto right = detail::plain<A>(view(key_.weight));
    if (config_.query) {
      detail::multiply<A, A, A>(detail::plain<A>(view(saved.q)), right, {}, Accumulate::kOverwrite, saved.q_keyed.view(),
                                executor);
    } else {
      detail::multiply<T, A, A>(detail::plain<T>(query), right, {}, Accumulate::kOverwrite, saved.q_keyed.view(),
                                executor);
    }
  }
  /// q: the projected query, or the query itself (in `memory` where it is 16 bits wide).
  MatrixView<const A> used_query(MatrixView<const T> query, const Saved& saved, Matrix<A>& memory) const {
    if (config_.query) return view(saved.q);
    if constexpr (std::same_as<T, A>) {
      return query;
    } else {
      memory.resize_discard(query.rows, query.cols);
      for (Index i = 0; i < query.rows; ++i) widened(query.row(i), query.cols, memory.row(i));
      return view(memory);
    }
  }
  MatrixView<const A> keyed_query(MatrixView<const A> q, const Saved& saved) const noexcept {
    return config_.key ? view(saved.q_keyed) : q;
  }

  /// From dq̃ and Σ ds to dquery and the gradients of both matrices.
  void backward_query(MatrixView<const T> query, MatrixView<const A> q, MatrixView<const A> dkeyed,
                      MatrixView<const A> shared, MatrixView<T> dquery, ExecutorRef executor) {
    const Index n = query.rows, d = hidden_size_;
    Matrix<A> dq_memory;
    MatrixView<const A> dq = dkeyed;
    if (config_.key) {
      dq_memory.resize_discard(n, d);
      detail::multiply<A, A, A>(detail::plain<A>(dkeyed), detail::transpose<A>(view(key_.weight)), {},
                                Accumulate::kOverwrite, dq_memory.view(), executor);
      // s_i has q·bk in it.
      detail::multiply<A, A, A>(detail::plain<A>(shared), detail::plain<A>(view(key_.bias)), {}, Accumulate::kAdd,
                                dq_memory.view(), executor);
      detail::multiply<A, A, A>(detail::transpose<A>(shared), detail::plain<A>(q), {}, Accumulate::kAdd,
                                key_.grad_bias.view(), executor);
      detail::multiply<A, A, A>(detail::transpose<A>(q), detail::plain<A>(dkeyed), {}, Accumulate::kAdd,
                                key_.grad_weight.view(), executor);
      dq = view(dq_memory);
    }
    if (config_.query) {
      detail::multiply<A, T, A>(detail::transpose<A>(dq), detail::plain<T>(query), {}, Accumulate::kAdd,
                                query_.grad_weight.view(), executor);
      detail::add_column_sums<A>(dq, A(1), query_.grad_bias.flat(), executor);
      detail::multiply<A, A, T>(detail::plain<A>(dq), detail::plain<A>(view(query_.weight)), {}, Accumulate::kOverwrite,
                                dquery, executor);
    } else {
      for (Index i = 0; i < n; ++i) {
        for (Index j = 0; j < d; ++j) dquery(i, j) = static_cast<T>(dq(i, j));
      }
    }
  }

  template <class Y>
  void check(std::string_view who, MatrixView<const T> query, std::span<const MatrixView<const T>> updates,
             MatrixView<const T> r, MatrixView<Y> y) const {
    if (updates.empty() || updates.size() > static_cast<std::size_t>(kMostUpdates)) {
      fail<ShapeError>("{}: {} updates; expected 1 to {}", who, updates.size(), kMostUpdates);
    }
    detail::check_shape(who, "the query", query, query.rows, hidden_size_);
    for (const MatrixView<const T>& update : updates) {
      detail::check_shape(who, "an update", update, query.rows, hidden_size_);
    }
    detail::check_shape(who, "r (the residual)", r, query.rows, hidden_size_);
    detail::check_shape(who, "y or dy", y, query.rows, hidden_size_);
  }

  static constexpr Index kMostUpdates = 1024;

  AdapterFusionConfig config_;
  Index hidden_size_;
  float dropout_ = 0;
  double temperature_ = 1;
  Linear query_, key_, value_;
};

PEFT_END_NAMESPACE
