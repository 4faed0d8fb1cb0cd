#pragma once
/// What one pass over a linear layer asks of a method's update, whatever the method: docs/METHODS.md has the equation.
/// A method needs none of this: UpdateModel makes it from the members that the method has.

#include <concepts>
#include <cstdint>
#include <string_view>
#include <vector>

#include "peft/any_linear.hpp"
#include "peft/low_rank_update.hpp"
#include "peft/update_saved.hpp"

PEFT_BEGIN_NAMESPACE

/// How an update joins the pass.
enum class UpdateKind : std::uint8_t {
  kTerms,        ///< low-rank terms only: fused into the base's product
  kOutputGain,   ///< a gain on the base's product, and perhaps terms
  kInputGain,    ///< a gain on the base's input
  kReplacement,  ///< a layer instead of the base
};

namespace detail {

/// What one pass gives to one update.
template <Scalar T>
struct UpdateInput {
  MatrixView<const T> x;
  kernels::MaskBits mask;
  double weight = 1.0;
  ExecutorRef executor;
};

/// One update on one module. Defaults fit those that have nothing of the kind.
template <Scalar T>
class LinearUpdate {
 public:
  using A = Accumulator<T>;
  using Saved = UpdateSaved<T>;
  using Terms = std::vector<BasicLowRankTerm<A>>;
  using GradTerms = std::vector<BasicInputGradTerm<A>>;
  using MergeTerms = std::vector<BasicMergeTerm<A>>;

  virtual ~LinearUpdate() = default;
  virtual UpdateKind kind() const noexcept = 0;
  virtual Index in_features() const noexcept = 0;
  virtual Index out_features() const noexcept = 0;
  virtual float dropout() const noexcept { return 0.0f; }
  /// Columns of dS.
  virtual Index rank() const noexcept { return 0; }
  /// Appends the terms; what they view stands in `saved` or in the update.
  virtual void forward_terms(const UpdateInput<T>&, Saved&, Terms&) const {}
  /// Adds to the gradients of what the terms are made of, writes dS and appends what dx gets; gain_grad [out] (+)= what
  /// the terms know of the gain's gradient.
  virtual void backward_terms(MatrixView<const T>, const UpdateInput<T>&, const Saved&, MatrixView<A>, VectorView<A>,
                              GradTerms&) {}
  /// Appends the terms of W'; factors that have to be made are put into `scratch`.
  virtual void merge_terms(double, Saved&, MergeTerms&) const {}
  /// Whether a merge changes the bias, and by what: bias += weight·….
  virtual bool changes_bias() const noexcept { return false; }
  virtual void add_bias(double, VectorView<A>) const {}

  /// Writes the gain to saved.gain: [1, out], or [1, in] of an input gain.
  virtual void make_gain(const AnyLinear<T>&, Saved&, ExecutorRef) const {}
  /// Whether the gain is on product and bias, and multiplies with others (IA³), or on the product alone, and its
  /// difference to 1 adds up (DoRA).
  virtual bool gain_covers_bias() const noexcept { return false; }
  /// Adds to the gradient of what the gain is made of.
  virtual void pull_gain(const Saved&, VectorView<const A>) {}

  /// The layer instead of the base, or nullptr.
  virtual const AnyLinear<T>* replacement() const noexcept { return nullptr; }
  /// dW and d bias of the replacement, += weight·….
  virtual void backward_replacement(MatrixView<const T>, const UpdateInput<T>&) {}

  virtual void* address(const void*) noexcept { return nullptr; }
};

/// A method that appends its terms itself (LoRA, whose gradients go straight into place).
template <class U, class T>
concept OwnTerms = requires(U& u, MatrixView<const T> x, const kernels::MaskBits& mask,
                            MatrixView<Accumulator<T>> s, ExecutorRef executor) {
  u.project(x, mask, s, executor);
  u.accumulate_gradients(x, x, mask, MatrixView<const Accumulator<T>>(s), 1.0, s, executor);
};

template <class U, class T>
concept OutputGain = requires(U& u, const U& c, const AnyLinear<T>& base, UpdateSaved<T>& saved, ExecutorRef executor) {
  c.make_gain(base, saved, executor);
  u.pull_gain(saved, VectorView<const Accumulator<T>>());
};

template <class U, class T>
concept ReplacementLayer = requires(U& u, const U& c, MatrixView<const T> x, ExecutorRef executor) {
  { c.replacement() } -> std::convertible_to<const AnyLinear<T>*>;
  u.backward_replacement(x, x, 1.0, executor);
};

/// A method that appends terms of its own making (a bias as a column of ones).
template <class U, class T>
concept MadeTerms = requires(const U& c, MatrixView<const T> x, UpdateSaved<T>& saved,
                             std::vector<BasicLowRankTerm<Accumulator<T>>>& terms, ExecutorRef executor) {
  c.forward_terms(x, kernels::MaskBits(), 1.0, saved, terms, executor);
};

/// Whether U is an update of a linear layer.
template <class U, class T>
concept LinearMethod =
    OwnTerms<U, T> || FactoredUpdate<U, T> || OutputGain<U, T> || ReplacementLayer<U, T> || MadeTerms<U, T>;

/// The interface over a method's value. Holder gives `U& method()`.
template <class U, Scalar T, class Holder>
class UpdateModel : public LinearUpdate<T> {
 public:
  using Base = LinearUpdate<T>;
  using typename Base::A;
  using typename Base::GradTerms;
  using typename Base::MergeTerms;
  using typename Base::Saved;
  using typename Base::Terms;

  UpdateKind kind() const noexcept final {
    if constexpr (requires(const U& u) { u.update_kind(); }) {
      return method().update_kind();
    } else if constexpr (ReplacementLayer<U, T>) {
      return UpdateKind::kReplacement;
    } else {
      return UpdateKind::kTerms;
    }
  }
  Index in_features() const noexcept final { return method().in_features(); }
  Index out_features() const noexcept final { return method().out_features(); }
  float dropout() const noexcept final {
    if constexpr (requires(const U& u) { u.dropout(); }) return method().dropout();
    return 0.0f;
  }
  Index rank() const noexcept final {
    if constexpr (OwnTerms<U, T>) {
      return method().r();
    } else if constexpr (FactoredUpdate<U, T> || requires(const U& u) { u.rank(); }) {
      return method().rank();
    } else {
      return 0;
    }
  }
  void forward_terms(const UpdateInput<T>& in, Saved& saved, Terms& terms) const final {
    const U& u = method();
    if constexpr (OwnTerms<U, T>) {
      saved.s.resize_discard(in.x.rows, u.r());
      u.project(in.x, in.mask, saved.s.view(), in.executor);
      terms.push_back(u.forward_term(std::as_const(saved.s).view(), in.weight));
      if (!u.bias().empty()) terms.push_back(u.bias_term(in.x.rows, in.weight));
    } else if constexpr (FactoredUpdate<U, T>) {
      factored_forward<T>(u, in.x, in.mask, in.weight, saved, terms, in.executor);
    } else if constexpr (requires { u.forward_terms(in.x, in.mask, in.weight, saved, terms, in.executor); }) {
      u.forward_terms(in.x, in.mask, in.weight, saved, terms, in.executor);
    }
  }
  void backward_terms(MatrixView<const T> dy, const UpdateInput<T>& in, const Saved& saved, MatrixView<A> ds,
                      VectorView<A> gain_grad, GradTerms& terms) final {
    U& u = method();
    (void)gain_grad;
    if constexpr (OwnTerms<U, T>) {
      u.accumulate_gradients(dy, in.x, in.mask, saved.s.view(), in.weight, ds, in.executor);
      terms.push_back({ds, u.a_view(), in.mask});
    } else if constexpr (FactoredUpdate<U, T>) {
      factored_backward<T>(u, dy, in.x, in.mask, in.weight, saved, ds, terms, in.executor);
    } else if constexpr (requires {
                           u.backward_terms(dy, in.x, in.mask, in.weight, saved, ds, gain_grad, terms, in.executor);
                         }) {
      u.backward_terms(dy, in.x, in.mask, in.weight, saved, ds, gain_grad, terms, in.executor);
    }
  }
  void merge_terms(double weight, Saved& scratch, MergeTerms& terms) const final {
    const U& u = method();
    if constexpr (OwnTerms<U, T>) {
      terms.push_back({u.a_view(), u.b_view(), static_cast<A>(u.scaling() * weight)});
    } else if constexpr (FactoredUpdate<U, T>) {
      if (u.rank() == 0) return;
      u.make_factors(scratch.a, scratch.b);
      const Factors<A> f = u.factors(std::as_const(scratch.a), std::as_const(scratch.b));
      terms.push_back({f.a, f.b, static_cast<A>(f.scale * static_cast<A>(weight))});
    } else if constexpr (requires { u.merge_terms(weight, scratch, terms); }) {
      u.merge_terms(weight, scratch, terms);
    }
  }
  bool changes_bias() const noexcept final {
    if constexpr (OwnTerms<U, T>) {
      return !method().bias().empty();
    } else {
      return requires(const U& u, VectorView<A> bias) { u.add_bias(1.0, bias); };
    }
  }
  void add_bias(double weight, VectorView<A> bias) const final {
    if constexpr (OwnTerms<U, T>) {
      const auto scale = static_cast<A>(method().scaling() * weight);
      for (Index j = 0; j < bias.size; ++j) bias[j] += rounded(scale * method().bias().value().data()[j]);
    } else if constexpr (requires(const U& u) { u.add_bias(weight, bias); }) {
      method().add_bias(weight, bias);
    }
  }
  void make_gain(const AnyLinear<T>& base, Saved& saved, ExecutorRef executor) const final {
    if constexpr (OutputGain<U, T>) method().make_gain(base, saved, executor);
  }
  bool gain_covers_bias() const noexcept final {
    if constexpr (requires(const U& u) { u.gain_covers_bias(); }) return method().gain_covers_bias();
    return false;
  }
  void pull_gain(const Saved& saved, VectorView<const A> grad) final {
    if constexpr (OutputGain<U, T>) method().pull_gain(saved, grad);
  }
  const AnyLinear<T>* replacement() const noexcept final {
    if constexpr (ReplacementLayer<U, T>) return method().replacement();
    return nullptr;
  }
  void backward_replacement(MatrixView<const T> dy, const UpdateInput<T>& in) final {
    if constexpr (ReplacementLayer<U, T>) method().backward_replacement(dy, in.x, in.weight, in.executor);
  }
  void* address(const void* key) noexcept final {
    return key == type_key<U>() ? static_cast<void*>(&method()) : nullptr;
  }

 private:
  U& method() const noexcept { return static_cast<const Holder*>(this)->held(); }
};

/// An interface over a method that stands elsewhere.
template <class U, Scalar T>
class BorrowedUpdate final : public UpdateModel<U, T, BorrowedUpdate<U, T>> {
 public:
  explicit BorrowedUpdate(U& method) noexcept : method_(&method) {}
  U& held() const noexcept { return *method_; }

 private:
  U* method_;
};

}  // namespace detail
PEFT_END_NAMESPACE
