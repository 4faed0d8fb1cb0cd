#pragma once
/// A matrix in the blocks that a GGUF file stores (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K): the file's own bytes, which
/// are computed on as they are. Each row is whole blocks; their layouts are in io/dequantize.hpp, and so are the values, which
/// are those of the gguf package, bit for bit. checkpoint/gguf_blocks.hpp makes one of a file's tensor.

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "peft/core/buffer.hpp"
#include "peft/core/parallel.hpp"
#include "peft/error.hpp"
#include "peft/kernels/gemm_problem.hpp"
#include "peft/kernels/kernel_table.hpp"
#include "peft/packed_rows.hpp"

PEFT_BEGIN_NAMESPACE

/// Immutable; a copy shares the bytes, which are owned or a mapped file's. Threads may read it at once.
class GgufTensor {
 public:
  static constexpr std::string_view kLayer = "GgufLinear";
  using operand_type = kernels::BlocksOperand;

  /// An empty one, [0, 0].
  GgufTensor() = default;

  /// `bytes` [rows, cols] in memory that `keep_alive` owns. Throws ShapeError, beginning with `where`, unless a row is whole
  /// blocks and the bytes are the shape's.
  GgufTensor(BlockFormat format, Index rows, Index cols, VectorView<const std::uint8_t> bytes,
             std::shared_ptr<const void> keep_alive, std::string_view where = kName)
      : format_(format), shape_{rows, cols}, bytes_(bytes), keep_alive_(std::move(keep_alive)) {
    const BlockFormatInfo& info = info_of(format);
    if (rows < 0 || cols < 0 || cols % info.elements != 0) {
      fail<ShapeError>("{}: [{}, {}] in {}; expected columns in whole blocks of {}", where, rows, cols, info.name,
                       info.elements);
    }
    row_bytes_ = cols / info.elements * info.bytes;
    Index size = 0;
    if (__builtin_mul_overflow(rows, row_bytes_, &size) || size != bytes.size) {
      fail<ShapeError>("{}: {} bytes; expected {} for [{}, {}] in {}", where, bytes.size,
                       size == 0 && row_bytes_ > 0 && rows > 0 ? "a size that can be addressed" : std::to_string(size), rows,
                       cols, info.name);
    }
  }

  BlockFormat format() const noexcept { return format_; }
  const std::vector<Index>& shape() const noexcept { return shape_; }
  Index rows() const noexcept { return shape_[0]; }
  Index cols() const noexcept { return shape_[1]; }
  Index byte_size() const noexcept { return bytes_.size; }
  /// Of a row.
  Index row_bytes() const noexcept { return row_bytes_; }
  VectorView<const std::uint8_t> bytes() const noexcept { return bytes_; }
  const std::shared_ptr<const void>& keep_alive() const noexcept { return keep_alive_; }

  /// The same rows in another order, in memory of its own: row i is this one's row source(i). Rows are copied in their blocks.
  template <class Source>
  GgufTensor with_rows(Source&& source) const {
    auto copy = std::make_shared<Buffer<std::uint8_t>>(bytes_.size);
    for (Index i = 0; i < rows(); ++i) {
      std::copy_n(bytes_.data + source(i) * row_bytes_, row_bytes_, copy->data() + i * row_bytes_);
    }
    const VectorView<const std::uint8_t> bytes = std::as_const(*copy).view();
    return GgufTensor(format_, rows(), cols(), bytes, std::move(copy));
  }

  /// Elements [first, first + count) of a row. Throws ShapeError for elements that do not exist.
  void dequantize_row(Index row, Index first, Index count, float* out) const {
    if (row < 0 || row >= rows() || first < 0 || count < 0 || first > cols() || count > cols() - first) {
      fail<ShapeError>("{}::dequantize_row: elements {} to {} of row {}; expected elements within [{}, {}]", kName, first,
                       first + count, row, rows(), cols());
    }
    decode(kernels::table(), row, first, count, out);
  }

  /// All elements, rounded once where T has 16 bits. out [rows(), cols()]. Throws ShapeError.
  template <Scalar T>
    requires(!std::same_as<T, double>)
  void dequantize(MatrixView<T> out, ExecutorRef executor = default_executor()) const {
    detail::dequantize_rows(kName, *this, out, executor);
  }

  // What a PackedLinear asks for.
  void decode(const kernels::KernelTable& t, Index row, Index first, Index count, float* out) const noexcept {
    t.decode_blocks(format_, bytes_.data + row * row_bytes_, first, count, out);
  }
  operand_type operand() const noexcept { return {bytes_.data, row_bytes_, format_}; }
  void give_operand(const operand_type& operand, kernels::PanelFill& fill) const noexcept { fill.blocks = &operand; }

 private:
  static constexpr std::string_view kName = "GgufTensor";

  BlockFormat format_ = BlockFormat::kQ4_0;
  std::vector<Index> shape_{0, 0};
  Index row_bytes_ = 0;
  VectorView<const std::uint8_t> bytes_;
  std::shared_ptr<const void> keep_alive_;
};

PEFT_END_NAMESPACE
