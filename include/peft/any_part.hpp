#pragma once
/// A part of an adapter on one module: any method's value behind one type. What it must have is the visitor:
///   part.for_each_parameter(visit, prefix)      see parameter.hpp
/// for_each_weight(visit, prefix) (without making gradients) and zero_grad() are used where present. A part that updates
/// a linear layer (detail::LinearMethod) joins the layer's pass.

#include <memory>
#include <string_view>
#include <type_traits>
#include <utility>

#include "peft/core/type_key.hpp"
#include "peft/linear_update.hpp"
#include "peft/lora.hpp"
#include "peft/parameter.hpp"

PEFT_BEGIN_NAMESPACE

/// Owns a part. Movable. T is the activation type, A the parameters'.
template <Scalar T>
class AnyPart {
 public:
  using A = Accumulator<T>;

  template <class U>
    requires(!std::same_as<std::remove_cvref_t<U>, AnyPart> && !std::is_lvalue_reference_v<U>)
  AnyPart(U&& part)  // NOLINT(google-explicit-constructor): made to be given a part
      : part_(std::make_unique<Model<std::remove_cvref_t<U>>>(std::move(part))) {}

  /// The part, where it is a U; else nullptr.
  template <class U>
  U* get_if() noexcept {
    return static_cast<U*>(part_->address(detail::type_key<U>()));
  }
  template <class U>
  const U* get_if() const noexcept {
    return static_cast<const U*>(part_->address(detail::type_key<U>()));
  }
  /// Whether both hold the same type.
  bool has_type_of(const AnyPart& other) const noexcept { return part_->key() == other.part_->key(); }

  /// The update of a linear layer that it is, or nullptr.
  detail::LinearUpdate<T>* update() const noexcept { return part_->update(); }

  /// visit(const ParameterInfo&, VectorView<A> value, VectorView<A> grad).
  template <class Visitor>
  void for_each_parameter(Visitor&& visit, std::string_view prefix) {
    part_->visit(erased(visit), prefix, true);
  }
  /// The same without making gradients: their views are empty.
  template <class Visitor>
  void for_each_weight(Visitor&& visit, std::string_view prefix) {
    part_->visit(erased(visit), prefix, false);
  }
  void zero_grad() noexcept { part_->zero_grad(); }

 private:
  struct ErasedVisitor {
    void* context;
    void (*call)(void*, const ParameterInfo&, VectorView<A>, VectorView<A>);
    void operator()(const ParameterInfo& info, VectorView<A> value, VectorView<A> grad) const {
      call(context, info, value, grad);
    }
  };
  template <class Visitor>
  static ErasedVisitor erased(Visitor& visit) noexcept {
    using Plain = std::remove_reference_t<Visitor>;
    return {const_cast<void*>(static_cast<const void*>(std::addressof(visit))),
            [](void* context, const ParameterInfo& info, VectorView<A> value, VectorView<A> grad) {
              (*static_cast<Plain*>(context))(info, value, grad);
            }};
  }

  struct Interface {
    virtual ~Interface() = default;
    virtual void visit(const ErasedVisitor&, std::string_view prefix, bool with_grad) = 0;
    virtual void zero_grad() noexcept = 0;
    virtual detail::LinearUpdate<T>* update() noexcept = 0;
    virtual const void* key() const noexcept = 0;
    virtual void* address(const void* key) noexcept = 0;
  };

  template <class U>
  struct Model final : Interface {
    explicit Model(U&& given) : held(std::move(given)), own_update(held) {}
    void visit(const ErasedVisitor& visitor, std::string_view prefix, bool with_grad) override {
      if constexpr (requires { held.for_each_weight(visitor, prefix); }) {
        if (!with_grad) {
          held.for_each_weight(visitor, prefix);
          return;
        }
      }
      held.for_each_parameter(visitor, prefix);
    }
    void zero_grad() noexcept override {
      if constexpr (requires { held.zero_grad(); }) {
        held.zero_grad();
      } else {
        held.for_each_parameter(
            [](const ParameterInfo&, VectorView<A>, VectorView<A> grad) {
              for (A& value : grad) value = A(0);
            },
            std::string_view());
      }
    }
    detail::LinearUpdate<T>* update() noexcept override { return own_update.get(); }
    const void* key() const noexcept override { return detail::type_key<U>(); }
    void* address(const void* wanted) noexcept override {
      return wanted == detail::type_key<U>() ? static_cast<void*>(std::addressof(held)) : nullptr;
    }

    struct NoUpdate {
      explicit NoUpdate(U&) noexcept {}
      detail::LinearUpdate<T>* get() noexcept { return nullptr; }
    };
    struct WithUpdate {
      explicit WithUpdate(U& method) noexcept : borrowed(method) {}
      detail::LinearUpdate<T>* get() noexcept { return &borrowed; }
      detail::BorrowedUpdate<U, T> borrowed;
    };
    static constexpr bool kIsUpdate = [] {
      if constexpr (requires(const U& u) { u.in_features(); u.out_features(); }) {
        return detail::LinearMethod<U, T>;
      } else {
        return false;
      }
    }();
    U held;
    std::conditional_t<kIsUpdate, WithUpdate, NoUpdate> own_update;
  };

  std::unique_ptr<Interface> part_;
};

PEFT_END_NAMESPACE
