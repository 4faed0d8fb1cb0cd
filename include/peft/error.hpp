#pragma once
/// The errors of the library: one family under peft::Error.
/// Text of an error = what was done: what was got; expected what; where (file, tensor, module…); a hint where one helps.

// fmt 9 makes no function constexpr where nvcc compiles, and calls them from one that is.
#if defined(__NVCC__) && !defined(FMT_USE_CONSTEXPR)
#define FMT_USE_CONSTEXPR 1
#endif
#include <fmt/core.h>

#include <stdexcept>
#include <string>

#include "peft/config.hpp"

PEFT_BEGIN_NAMESPACE

/// Base of all errors that the library throws.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& text) : std::runtime_error(text) {}
};

/// Sizes of tensors, views or modules that do not fit together.
class ShapeError : public Error {
 public:
  using Error::Error;
};

/// A configuration that contradicts itself, is out of range, or asks for what is not supported.
class ConfigError : public Error {
 public:
  using Error::Error;
};

/// A file's or record's content that breaks its format.
class FormatError : public Error {
 public:
  using Error::Error;
};

/// The operating system refused a read, a write or a mapping.
class IoError : public Error {
 public:
  using Error::Error;
};

/// A number that stopped being finite (loss, gradient, merged weight).
class NumericError : public Error {
 public:
  using Error::Error;
};

/// A GPU, its driver or one of CUDA's libraries refused a call, or there is no GPU.
class CudaError : public Error {
 public:
  using Error::Error;
};

namespace detail {

/// A format as fmt takes it. With PEFT_CHECK_FORMATS, as in this project's own builds, fmt compares each with its arguments
/// at compile time; users of the headers need not wait for that.
#ifdef PEFT_CHECK_FORMATS
template <class... Args>
using FormatText = fmt::format_string<Args...>;
#else
template <class...>
using FormatText = fmt::string_view;
#endif

}  // namespace detail

/// Throws E with a text formatted by fmt: `fail<ShapeError>("Lora::forward: x has {} columns; expected {}", a, b)`.
template <class E, class... Args>
[[noreturn]] void fail(detail::FormatText<Args...> text, Args&&... args) {
  throw E(fmt::vformat(text, fmt::make_format_args(args...)));
}

PEFT_END_NAMESPACE
