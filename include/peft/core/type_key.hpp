#pragma once
/// A key per type, so that what stands behind a type-erased holder can be asked for without RTTI.

#include "peft/config.hpp"

PEFT_BEGIN_NAMESPACE
namespace detail {

/// The address of a function's own static: one per type within a program or shared object.
template <class T>
const void* type_key() noexcept {
  static const char key = 0;
  return &key;
}

}  // namespace detail
PEFT_END_NAMESPACE
