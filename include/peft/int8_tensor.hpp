#pragma once
/// A weight in eight bits per element, each row with its own scale:
///   w ≈ code·absmax of its row/127,   code = the whole number nearest to w·(127·(1/absmax)), halfway the even one
/// 8 bits per weight and 32 per row. Codes, absmax and dequantised values are those of bitsandbytes 0.50.2's
/// int8_vectorwise_quant on a CPU (without a threshold), bit for bit; a row of zeros has absmax 0 and codes 0.
/// Dettmers et al., "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", 2022, section 3.1.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <memory>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "peft/core/buffer.hpp"
#include "peft/core/parallel.hpp"
#include "peft/core/rounded.hpp"
#include "peft/error.hpp"
#include "peft/kernels/gemm_problem.hpp"
#include "peft/kernels/kernel_table.hpp"
#include "peft/packed_rows.hpp"

PEFT_BEGIN_NAMESPACE

/// Immutable; a copy shares the bytes. Threads may read it at once.
class Int8Tensor {
 public:
  static constexpr std::string_view kLayer = "Int8Linear";
  /// Products of a few rows have no kernel of their own: they decode panels as all others do.
  struct operand_type {};

  /// An empty one, [0, 0].
  Int8Tensor() = default;

  /// Takes bytes as they are: codes [rows, cols], absmax [rows], in memory that `keep_alive` owns. Throws ShapeError,
  /// NumericError for a maximum that is not finite or below 0, each beginning with `where`.
  Int8Tensor(Index rows, Index cols, VectorView<const std::int8_t> codes, VectorView<const float> absmax,
             std::shared_ptr<const void> keep_alive, std::string_view where = kName)
      : shape_{rows, cols}, codes_(codes), absmax_(absmax), keep_alive_(std::move(keep_alive)) {
    Index size = 0;
    if (rows < 0 || cols < 0 || __builtin_mul_overflow(rows, cols, &size) || codes.size != size || absmax.size != rows) {
      fail<ShapeError>("{}: {} codes and {} maxima; expected those of [{}, {}], a maximum for each row", where, codes.size,
                       absmax.size, rows, cols);
    }
    for (Index i = 0; i < rows; ++i) {
      if (is_finite(absmax[i]) && absmax[i] >= 0) continue;
      fail<NumericError>("{}: the maximum of row {} is {}; expected a finite number from 0", where, i, absmax[i]);
    }
  }

  /// Quantises `weight`. Throws ShapeError, NumericError where an element is not finite.
  template <Scalar T>
    requires(!std::same_as<T, double>)
  static Int8Tensor quantize(MatrixView<const T> weight, ExecutorRef executor = default_executor()) {
    constexpr std::string_view kWhere = "Int8Tensor::quantize";
    if (weight.rows > 1 && weight.stride < weight.cols) {
      fail<ShapeError>("{}: the weight has {} columns and a row stride of {}; expected a stride of at least {}", kWhere,
                       weight.cols, weight.stride, weight.cols);
    }
    struct Buffers {
      Buffer<std::int8_t> codes;
      Buffer<float> absmax;
    };
    auto buffers = std::make_shared<Buffers>(
        Buffers{Buffer<std::int8_t>(weight.rows * weight.cols), Buffer<float>::zeros(weight.rows)});
    const kernels::KernelTable& t = kernels::table();
    std::atomic<Index> wrong{weight.rows};  // the first row with an element that is not finite
    parallel_for_ranges(executor, weight.cols > 0 ? weight.rows : 0, 16, [&](Index first, Index last) {
      Buffer<float> memory(weight.cols);
      for (Index i = first; i < last; ++i) {
        t.widen(weight.cols, weight.row(i), dtype_of<T>(), memory.data());
        if (t.any_non_finite(weight.cols, memory.data())) {
          Index seen = wrong.load(std::memory_order_relaxed);
          while (i < seen && !wrong.compare_exchange_weak(seen, i, std::memory_order_relaxed)) {
          }
          return;
        }
        const float most = t.abs_max(weight.cols, memory.data());
        buffers->absmax[i] = most;
        // Of a maximum so small that 127/absmax is no number, codes are those of the largest one.
        const float scale = most > 0 ? std::min(rounded(127.0f * quotient(1.0f, most)), 3.4028235e38f) : 0.0f;
        std::int8_t* const codes = buffers->codes.data() + i * weight.cols;
        for (Index j = 0; j < weight.cols; ++j) {
          codes[j] = static_cast<std::int8_t>(std::lrint(rounded(memory[j] * scale)));
        }
      }
    });
    if (const Index row = wrong.load(std::memory_order_relaxed); row < weight.rows) {
      Index column = 0;
      while (is_finite(static_cast<float>(weight(row, column)))) ++column;
      fail<NumericError>("{}: the element at row {}, column {} of [{}, {}] is {}; expected finite numbers", kWhere, row, column,
                         weight.rows, weight.cols, static_cast<float>(weight(row, column)));
    }
    const VectorView<const std::int8_t> codes = std::as_const(buffers->codes).view();
    const VectorView<const float> absmax = std::as_const(buffers->absmax).view();
    return Int8Tensor(weight.rows, weight.cols, codes, absmax, std::move(buffers), kWhere);
  }
  template <Scalar T>
    requires(!std::same_as<T, double>)
  static Int8Tensor quantize(MatrixView<T> weight, ExecutorRef executor = default_executor()) {
    return quantize(MatrixView<const T>(weight), executor);
  }
  /// `values` [rows(), cols()] in this one's form. Throws as quantize().
  Int8Tensor requantized(MatrixView<const float> values, ExecutorRef executor = default_executor()) const {
    return quantize(values, executor);
  }

  const std::vector<Index>& shape() const noexcept { return shape_; }
  Index rows() const noexcept { return shape_[0]; }
  Index cols() const noexcept { return shape_[1]; }
  VectorView<const std::int8_t> codes() const noexcept { return codes_; }
  VectorView<const float> absmax() const noexcept { return absmax_; }
  /// Bytes of codes and scales.
  Index byte_size() const noexcept { return codes_.size + 4 * absmax_.size; }

  /// All elements, rounded once where T has 16 bits. out [rows(), cols()]. Throws ShapeError.
  template <Scalar T>
    requires(!std::same_as<T, double>)
  void dequantize(MatrixView<T> out, ExecutorRef executor = default_executor()) const {
    detail::dequantize_rows(kName, *this, out, executor);
  }

  // What a PackedLinear asks for.
  void decode(const kernels::KernelTable& t, Index row, Index first, Index count, float* out) const noexcept {
    const std::int8_t* const codes = codes_.data + row * cols() + first;
    for (Index j = 0; j < count; ++j) out[j] = static_cast<float>(codes[j]);
    // Two kernels, so that no compiler makes one factor of the two.
    t.scale(count, absmax_[row], out);
    t.scale(count, 1.0f / 127.0f, out);
  }
  operand_type operand() const noexcept { return {}; }
  void give_operand(const operand_type&, kernels::PanelFill&) const noexcept {}

 private:
  static constexpr std::string_view kName = "Int8Tensor";

  std::vector<Index> shape_{0, 0};
  VectorView<const std::int8_t> codes_{};
  VectorView<const float> absmax_{};
  std::shared_ptr<const void> keep_alive_;
};

PEFT_END_NAMESPACE
