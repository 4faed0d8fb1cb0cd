#pragma once
/// What quantising a model lost, as commands print it.

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>

#include "peft/quantization_error.hpp"

namespace peft_examples {

/// Of all layers (name, error) to stderr, and where `each` of every one as a table to stdout.
template <class Layers>
void print_errors(const Layers& layers, bool each) {
  peft::QuantizationError all;
  std::size_t width = 6;
  for (const auto& layer : layers) {
    all += layer.error;
    width = std::max(width, layer.name.size());
  }
  if (each) {
    fmt::print("{:<{}}  {:>8}  {:>10}  {:>9}  {:>10}\n", "weight", width, "SNR, dB", "relative", "largest", "sign flips");
    for (const auto& [name, error] : layers) {
      fmt::print("{:<{}}  {:>8.2f}  {:>10.5f}  {:>9.2e}  {:>10}\n", name, width, error.snr(), error.relative_rms(), error.largest,
                 error.sign_flips);
    }
  }
  fmt::print(stderr, "error of {} weights: SNR {:.2f} dB, relative {:.5f}, largest {:.3g}, {} changed their sign\n", all.elements,
             all.snr(), all.relative_rms(), all.largest, all.sign_flips);
}

}  // namespace peft_examples
