#pragma once
/// A weight in four bits per element, quantised by blocks, once or twice:
///   w ≈ value[code]·absmax of its block
/// 4.5 bits per weight with blocks of 64, 4.127 where the maxima are quantised too (8 bits each and 32 for 256 of them).
/// Codes, absmax and dequantised values are those of bitsandbytes 0.50.2, bit for bit; four_bit_storage.hpp has the layout.
/// Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023, section 3.

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "peft/core/buffer.hpp"
#include "peft/core/parallel.hpp"
#include "peft/error.hpp"
#include "peft/four_bit_absmax.hpp"
#include "peft/four_bit_config.hpp"
#include "peft/four_bit_storage.hpp"
#include "peft/kernels/four_bit_panel.hpp"
#include "peft/kernels/gemm_problem.hpp"
#include "peft/kernels/quantize_four_bit.hpp"

PEFT_BEGIN_NAMESPACE
namespace detail {

/// Elements of a shape; -1 where one is negative or the product does not fit.
inline Index element_product(const std::vector<Index>& shape) noexcept {
  Index count = 1;
  for (const Index size : shape) {
    if (size < 0 || __builtin_mul_overflow(count, size, &count)) return -1;
  }
  return count;
}

}  // namespace detail

/// Immutable; a copy shares the bytes, which are owned or a mapped file's. Threads may read it at once.
template <FourBitCode kCode>
class FourBitTensor {
 public:
  static constexpr std::string_view kLayer = "FourBitLinear";
  using operand_type = kernels::FourBitOperand;

  static constexpr FourBitCode code() noexcept { return kCode; }

  /// An empty one, [0].
  FourBitTensor() { storage_.shape = {0}; }

  /// Takes bytes as they are. Throws ConfigError for a block size that does not exist, ShapeError where the sizes do not fit
  /// the shape, each beginning with `where`.
  explicit FourBitTensor(FourBitStorage storage, std::string_view where = "FourBitTensor") : storage_(std::move(storage)) {
    check_block_size(storage_.block_size, where);
    size_ = detail::element_product(storage_.shape);
    if (size_ < 0) fail<ShapeError>("{}: the shape {} cannot be addressed", where, shape_text());
    const Index blocks = block_count();
    const bool nested = storage_.absmax.empty() && !storage_.nested_map.empty();
    check_size(where, "codes", storage_.codes.size, size_ / 2 + size_ % 2);
    check_size(where, "absmax", storage_.absmax.size, nested ? 0 : blocks);
    check_size(where, "nested codes", storage_.nested_codes.size, nested ? blocks : 0);
    check_size(where, "nested map", storage_.nested_map.size, nested ? 256 : 0);
    check_size(where, "nested absmax", storage_.nested_absmax.size,
               nested ? (blocks + kernels::kNestedBlock - 1) / kernels::kNestedBlock : 0);
  }

  /// Quantises `weight`. Throws ConfigError for a block size that is no power of two from 32 to 4096, NumericError where an
  /// element is not finite.
  template <Scalar T>
    requires(!std::same_as<T, double>)
  static FourBitTensor quantize(MatrixView<const T> weight, const FourBitConfig& config = {},
                                ExecutorRef executor = default_executor()) {
    constexpr std::string_view kWhere = "FourBitTensor::quantize";
    check_block_size(config.block_size, kWhere);
    if (weight.rows > 1 && weight.stride < weight.cols) {
      fail<ShapeError>("{}: the weight has {} columns and a row stride of {}; expected a stride of at least {}", kWhere,
                       weight.cols, weight.stride, weight.cols);
    }
    if (config.nested_offset && !is_finite(*config.nested_offset)) {
      fail<ConfigError>("{}: nested_offset is {}; expected a finite number", kWhere, *config.nested_offset);
    }
    FourBitStorage storage;
    storage.shape = {weight.rows, weight.cols};
    storage.dtype = dtype_of<T>();
    storage.block_size = config.block_size;
    const Index n = weight.rows * weight.cols;
    auto buffers = std::make_shared<detail::FourBitBuffers>();
    buffers->codes = Buffer<std::uint8_t>((n + 1) / 2);
    buffers->absmax = Buffer<float>((n + config.block_size - 1) / config.block_size);
    const Index wrong = kernels::quantize_four_bit(kernels::table_of(kCode), weight.data, weight.rows, weight.cols,
                                                   weight.stride, dtype_of<T>(), config.block_size,
                                                   buffers->codes.data(), buffers->absmax.data(), executor);
    if (wrong >= 0) {
      const Index row = wrong / weight.cols, column = wrong % weight.cols;
      fail<NumericError>("{}: the element at row {}, column {} of [{}, {}] is {}; expected finite numbers", kWhere, row,
                         column, weight.rows, weight.cols, static_cast<float>(weight(row, column)));
    }
    if (config.double_quant) detail::quantize_absmax(config, *buffers, storage, executor);
    storage.codes = std::as_const(buffers->codes).view();
    storage.absmax = std::as_const(buffers->absmax).view();
    storage.nested_codes = std::as_const(buffers->nested_codes).view();
    storage.nested_map = std::as_const(buffers->nested_map).view();
    storage.nested_absmax = std::as_const(buffers->nested_absmax).view();
    storage.keep_alive = std::move(buffers);
    return FourBitTensor(std::move(storage), kWhere);
  }
  template <Scalar T>
    requires(!std::same_as<T, double>)
  static FourBitTensor quantize(MatrixView<T> weight, const FourBitConfig& config = {},
                                ExecutorRef executor = default_executor()) {
    return quantize(MatrixView<const T>(weight), config, executor);
  }

  /// `values` [rows(), cols()] in this one's form: block size, whether quantised twice (around their own mean), the type that
  /// files name. Throws as quantize().
  FourBitTensor requantized(MatrixView<const float> values, ExecutorRef executor = default_executor()) const {
    FourBitTensor result = quantize(values, {.block_size = block_size(), .double_quant = is_double_quantized()}, executor);
    result.storage_.dtype = storage_.dtype;
    return result;
  }

  const FourBitStorage& storage() const noexcept { return storage_; }
  const std::vector<Index>& shape() const noexcept { return storage_.shape; }
  Index size() const noexcept { return size_; }
  Index block_size() const noexcept { return storage_.block_size; }
  Index block_count() const noexcept { return size_ / storage_.block_size + (size_ % storage_.block_size != 0 ? 1 : 0); }
  bool is_double_quantized() const noexcept { return !storage_.nested_map.empty(); }
  /// Seen as a matrix: the last dimension is a row.
  Index cols() const noexcept { return storage_.shape.empty() ? 1 : storage_.shape.back(); }
  Index rows() const noexcept {
    Index count = 1;
    for (std::size_t i = 0; i + 1 < storage_.shape.size(); ++i) {
      if (__builtin_mul_overflow(count, storage_.shape[i], &count)) return -1;
    }
    return count;
  }
  /// Bytes of codes and scales.
  Index byte_size() const noexcept {
    const FourBitStorage& s = storage_;
    return s.codes.size + s.nested_codes.size + 4 * (s.absmax.size + s.nested_map.size + s.nested_absmax.size);
  }

  /// The maximum of a block, from its 8 bits where it is quantised too.
  float absmax(Index block) const noexcept { return scales()[block]; }
  kernels::BlockScales scales() const noexcept {
    const FourBitStorage& s = storage_;
    if (!is_double_quantized()) return {s.absmax.data, nullptr, nullptr, nullptr, 0};
    return {nullptr, s.nested_codes.data, s.nested_map.data, s.nested_absmax.data, s.nested_offset};
  }

  // What a PackedLinear asks for. Products of a few rows read the codes themselves where rows begin with a block.
  void decode(const kernels::KernelTable& t, Index row, Index first, Index count, float* out) const noexcept {
    kernels::dequantize_four_bit_range(t, kernels::table_of(kCode), storage_.codes.data, scales(), storage_.block_size,
                                       row * cols() + first, count, out);
  }
  /// A panel of Wᵀ (`turned`) or W at once, where rows begin with a block and the panel where it must (four_bit_panel.hpp); else
  /// false.
  bool decode_panel(const kernels::KernelTable& t, Index n0, Index nc, Index k0, Index kc, float* panel, Index ld,
                    bool turned) const noexcept {
    if (cols() % storage_.block_size != 0 || (turned ? k0 % 8 : n0 % 2) != 0) return false;
    if (turned) {
      kernels::four_bit_columns(t, operand(), cols(), n0, nc, k0, kc, panel, ld);
    } else {
      kernels::four_bit_rows(t, operand(), cols(), n0, nc, k0, kc, panel, ld);
    }
    return true;
  }
  operand_type operand() const noexcept {
    return {storage_.codes.data, kernels::table_of(kCode).value, scales(), storage_.block_size, nullptr};
  }
  void give_operand(const operand_type& operand, kernels::PanelFill& fill) const noexcept {
    if (cols() % storage_.block_size == 0) fill.four_bit = &operand;
  }

  void take_int8_activations(operand_type& operand) const {
    if (cols() % storage_.block_size != 0) {
      fail<ConfigError>("FourBitTensor: activations in 8 bits over rows of {} in blocks of {}; expected rows that begin with a "
                        "block",
                        cols(), storage_.block_size);
    }
    operand.int8 = &kernels::bytes_of(kCode);
  }

  /// Elements [first, first + count), counted flat. Throws ShapeError for elements that do not exist.
  void dequantize_range(Index first, Index count, float* out) const {
    if (first < 0 || count < 0 || first > size_ || count > size_ - first) {
      fail<ShapeError>("FourBitTensor::dequantize_range: elements {} to {}; expected elements within 0 to {}", first,
                       first + count, size_);
    }
    kernels::dequantize_four_bit_range(kernels::table(), kernels::table_of(kCode), storage_.codes.data, scales(),
                                       storage_.block_size, first, count, out);
  }

  /// All elements, rounded once where T has 16 bits. out [rows(), cols()]. Throws ShapeError.
  template <Scalar T>
    requires(!std::same_as<T, double>)
  void dequantize(MatrixView<T> out, ExecutorRef executor = default_executor()) const {
    if (out.rows != rows() || out.cols != cols() || (out.rows > 1 && out.stride < out.cols)) {
      fail<ShapeError>("FourBitTensor::dequantize: the result is [{}, {}] with a row stride of {}; expected [{}, {}]",
                       out.rows, out.cols, out.stride, rows(), cols());
    }
    const kernels::KernelTable& t = kernels::table();
    const kernels::FourBitTable& table = kernels::table_of(kCode);
    // Even, so that a part begins at a byte.
    constexpr Index kPart = 4096;
    parallel_for_ranges(executor, size_, 8 * kPart, [&](Index first, Index last) {
      float memory[kPart];
      while (first < last) {
        const Index row = first / out.cols, column = first % out.cols;
        const Index count = std::min({kPart, last - first, out.cols - column});
        float* part = memory;
        if constexpr (std::same_as<T, float>) part = out.row(row) + column;
        kernels::dequantize_four_bit_range(t, table, storage_.codes.data, scales(), storage_.block_size, first, count,
                                           part);
        if constexpr (!std::same_as<T, float>) t.narrow(count, memory, dtype_of<T>(), out.row(row) + column);
        first += count;
      }
    });
  }

 private:
  static void check_block_size(Index size, std::string_view where) {
    if (kernels::is_four_bit_block(size)) return;
    fail<ConfigError>("{}: the block size is {}; expected a power of two from {} to {}", where, size,
                      kernels::kSmallestFourBitBlock, kernels::kLargestFourBitBlock);
  }
  void check_size(std::string_view where, std::string_view what, Index got, Index expected) const {
    if (got == expected) return;
    fail<ShapeError>("{}: {} {}; expected {} for {} elements in blocks of {}", where, got, what, expected, size_,
                     storage_.block_size);
  }
  std::string shape_text() const {
    std::string text = "[";
    for (const Index size : storage_.shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
    return text + "]";
  }

  FourBitStorage storage_;
  Index size_ = 0;
};

/// Quantiles of the normal distribution: for weights.
using Nf4Tensor = FourBitTensor<FourBitCode::kNf4>;
/// A sign, two exponent bits, one of mantissa.
using Fp4Tensor = FourBitTensor<FourBitCode::kFp4>;

PEFT_END_NAMESPACE
