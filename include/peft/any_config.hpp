#pragma once
/// An adapter's configuration, whatever its method: a copyable holder of any configuration type.

#include <memory>
#include <string_view>
#include <type_traits>
#include <utility>

#include "peft/core/type_key.hpp"

PEFT_BEGIN_NAMESPACE

/// Holds a constant C. `C::kPeftType` (PEFT's peft_type, "LORA") names it; other types are "?".
class AnyConfig {
 public:
  template <class C>
    requires(!std::same_as<std::remove_cvref_t<C>, AnyConfig>)
  AnyConfig(C&& config)  // NOLINT(google-explicit-constructor): made to be given a configuration
      : value_(std::make_shared<const std::remove_cvref_t<C>>(std::forward<C>(config))),
        key_(detail::type_key<std::remove_cvref_t<C>>()),
        type_(type_of<std::remove_cvref_t<C>>()) {}

  /// The configuration, where it is a C; else nullptr.
  template <class C>
  const C* get_if() const noexcept {
    return key_ == detail::type_key<C>() ? static_cast<const C*>(value_.get()) : nullptr;
  }
  std::string_view peft_type() const noexcept { return type_; }

 private:
  template <class C>
  static constexpr std::string_view type_of() noexcept {
    if constexpr (requires { C::kPeftType; }) {
      return C::kPeftType;
    } else {
      return "?";
    }
  }

  std::shared_ptr<const void> value_;
  const void* key_;
  std::string_view type_;
};

PEFT_END_NAMESPACE
