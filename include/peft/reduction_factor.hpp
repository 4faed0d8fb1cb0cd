#pragma once
/// How much narrower than the hidden size an adapter's bottleneck is: one number, or one per layer.

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "peft/core/rounded.hpp"
#include "peft/core/scalar.hpp"
#include "peft/error.hpp"

PEFT_BEGIN_NAMESPACE

/// AdapterHub's `reduction_factor`: `16`, or `{{"1", 8}, {"6", 32}, {"default", 16}}`. Below 1 the bottleneck is wider.
class ReductionFactor {
 public:
  using PerLayer = std::vector<std::pair<std::string, double>>;

  ReductionFactor(double factor = 16) : factor_(factor) {}  // NOLINT(google-explicit-constructor): a number is one
  ReductionFactor(std::initializer_list<std::pair<std::string, double>> layers)  // NOLINT(google-explicit-constructor)
      : per_layer_(layers) {}
  explicit ReductionFactor(PerLayer layers) : per_layer_(std::move(layers)) {}

  bool is_per_layer() const noexcept { return !per_layer_.empty(); }
  /// The one number; not looked at where there are several.
  double factor() const noexcept { return factor_; }
  const PerLayer& per_layer() const noexcept { return per_layer_; }

  /// The factor of layer `layer`. Throws ConfigError where it is not listed and there is no "default".
  double for_layer(Index layer) const {
    if (!is_per_layer()) return factor_;
    for (const std::string& name : {std::to_string(layer), std::string("default")}) {
      const auto found = std::find_if(per_layer_.begin(), per_layer_.end(), [&](const auto& e) { return e.first == name; });
      if (found != per_layer_.end()) return found->second;
    }
    fail<ConfigError>(
        "AdapterConfig: reduction_factor lists {} layers, layer {} is not among them; add it, or a \"default\"",
        per_layer_.size(), layer);
  }

  /// Units of the bottleneck: hidden_size // factor as Python divides, at least 1. Throws ConfigError as for_layer does,
  /// and for a bottleneck that no memory holds.
  Index bottleneck_size(Index hidden_size, Index layer) const {
    const double factor = for_layer(layer);
    const auto hidden = static_cast<double>(hidden_size);
    // Not floor(hidden/factor): that quotient may round up to a whole number (1 // 0.1 is 9).
    const double size = std::round(quotient(hidden - std::fmod(hidden, factor), factor));
    constexpr double kMost = 1 << 24;
    if (!(size <= kMost)) {
      fail<ConfigError>("AdapterConfig: reduction_factor {} makes a bottleneck of {} units; expected at most {}", factor,
                        size, kMost);
    }
    return std::max<Index>(1, static_cast<Index>(size));
  }

  /// Throws ConfigError for factors that are not positive and finite, names that are no layer's, or one name twice.
  void validate() const {
    check("reduction_factor", factor_);
    for (std::size_t i = 0; i < per_layer_.size(); ++i) {
      const auto& [name, factor] = per_layer_[i];
      check("reduction_factor[\"" + name + "\"]", factor);
      const bool number = !name.empty() && name.find_first_not_of("0123456789") == std::string::npos &&
                          (name.size() == 1 || name.front() != '0');
      if (!number && name != "default") {
        fail<ConfigError>("AdapterConfig: reduction_factor has the key \"{}\"; expected layer numbers and \"default\"",
                          name);
      }
      for (std::size_t j = 0; j < i; ++j) {
        if (per_layer_[j].first == name) {
          fail<ConfigError>("AdapterConfig: reduction_factor has the key \"{}\" twice", name);
        }
      }
    }
  }

  friend bool operator==(const ReductionFactor&, const ReductionFactor&) = default;

 private:
  static void check(const std::string& what, double factor) {
    if (!is_finite(factor) || factor <= 0) {
      fail<ConfigError>("AdapterConfig: {} is {}; expected a number above 0", what, factor);
    }
  }

  double factor_ = 16;
  PerLayer per_layer_;
};

PEFT_END_NAMESPACE
