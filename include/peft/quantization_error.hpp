#pragma once
/// What quantising a weight lost.

#include <algorithm>
#include <cmath>
#include <concepts>
#include <limits>

#include "peft/core/buffer.hpp"
#include "peft/core/parallel.hpp"
#include "peft/core/rounded.hpp"
#include "peft/error.hpp"
#include "peft/kernels/kernel_table.hpp"

PEFT_BEGIN_NAMESPACE

/// Over all elements w and their values q afterwards. Errors of several weights add up with +=.
struct QuantizationError {
  Index elements = 0;
  double signal = 0;     ///< Σ w²
  double noise = 0;      ///< Σ (w − q)²
  double largest = 0;    ///< max |w − q|
  Index sign_flips = 0;  ///< elements whose sign became the other one; zeros have none

  /// 10·log₁₀(signal/noise) in dB; infinite where nothing was lost.
  double snr() const noexcept {
    return noise > 0 ? 10.0 * std::log10(signal / noise) : std::numeric_limits<double>::infinity();
  }
  /// √(noise/signal): 0.092 for NF4 over normal weights in blocks of 64.
  double relative_rms() const noexcept { return signal > 0 ? std::sqrt(noise / signal) : 0.0; }

  QuantizationError& operator+=(const QuantizationError& other) noexcept {
    elements += other.elements;
    signal += other.signal;
    noise += other.noise;
    largest = std::max(largest, other.largest);
    sign_flips += other.sign_flips;
    return *this;
  }
};

/// Of `weight` [rows, cols] and the rows that decode(row, values) gives, in any number of threads at once.
template <class Decode>
  requires std::invocable<const Decode&, Index, float*>
QuantizationError quantization_error(MatrixView<const float> weight, const Decode& decode,
                                     ExecutorRef executor = default_executor()) {
  Buffer<double> sums = Buffer<double>::zeros(3 * weight.rows);
  Buffer<Index> flips = Buffer<Index>::zeros(weight.rows);
  parallel_for_ranges(executor, weight.rows, 16, [&](Index first, Index last) {
    Buffer<float> values(weight.cols);
    for (Index r = first; r < last; ++r) {
      decode(r, values.data());
      double signal = 0, noise = 0, largest = 0;
      for (Index c = 0; c < weight.cols; ++c) {
        const double w = weight(r, c), difference = rounded(w - static_cast<double>(values[c]));
        signal = rounded(signal + rounded(w * w));
        noise = rounded(noise + rounded(difference * difference));
        largest = std::max(largest, difference < 0 ? -difference : difference);
        flips[r] += (w < 0 && values[c] > 0) || (w > 0 && values[c] < 0) ? 1 : 0;
      }
      sums[3 * r] = signal;
      sums[3 * r + 1] = noise;
      sums[3 * r + 2] = largest;
    }
  });
  QuantizationError total;
  for (Index r = 0; r < weight.rows; ++r) {
    total += {weight.cols, sums[3 * r], sums[3 * r + 1], sums[3 * r + 2], flips[r]};
  }
  return total;
}

/// Of `weight` [rows, cols] and what was made of it, a tensor that decodes parts of its rows (PackedTensor). The same number of
/// every number of threads. Throws ShapeError.
template <class W>
  requires requires(const W& w, Index i, float* out) { w.decode(kernels::table(), i, i, i, out); }
QuantizationError quantization_error(MatrixView<const float> weight, const W& tensor,
                                     ExecutorRef executor = default_executor()) {
  if (weight.rows != tensor.rows() || weight.cols != tensor.cols()) {
    fail<ShapeError>("quantization_error: the weight is [{}, {}]; expected the tensor's [{}, {}]", weight.rows, weight.cols,
                     tensor.rows(), tensor.cols());
  }
  return quantization_error(weight, [&tensor](Index row, float* values) {
    tensor.decode(kernels::table(), row, 0, tensor.cols(), values);
  }, executor);
}

PEFT_END_NAMESPACE
