#pragma once
/// Sizes as options write them.

#include <charconv>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "peft/core/scalar.hpp"
#include "peft/error.hpp"

namespace peft_examples {

/// "5GB", "500MB", "2GiB" or a number of bytes, as transformers reads them; "256M" counts in 1024, as limits on memory do.
/// Throws ConfigError, naming the option.
inline peft::Index parse_size(std::string_view option, const std::string& text) {
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  const std::string_view unit(end, static_cast<std::size_t>(text.data() + text.size() - end));
  constexpr double kKi = 1024.0;
  constexpr std::pair<std::string_view, double> kUnits[] = {
      {"", 1.0},   {"B", 1.0},        {"KB", 1e3},           {"MB", 1e6}, {"GB", 1e9},        {"TB", 1e12},
      {"KiB", kKi}, {"MiB", kKi * kKi}, {"GiB", kKi * kKi * kKi}, {"K", kKi},  {"M", kKi * kKi}, {"G", kKi * kKi * kKi}};
  for (const auto& [name, factor] : kUnits) {
    if (error == std::errc() && unit == name && number * factor >= 1 && number * factor < 1e18) {
      return static_cast<peft::Index>(number * factor);
    }
  }
  peft::fail<peft::ConfigError>("{} is {}; expected a size like 5GB, 500MB, 2GiB or 256M", option, peft::quote_text(text));
}

}  // namespace peft_examples
