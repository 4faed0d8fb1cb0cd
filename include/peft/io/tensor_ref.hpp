#pragma once
/// A named tensor where it stands in a file: type, shape and bytes, read as float by rows or viewed in place.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "peft/core/buffer.hpp"
#include "peft/error.hpp"
#include "peft/io/dequantize.hpp"
#include "peft/io/mapped_file.hpp"
#include "peft/io/stored_type.hpp"
#include "peft/io/text.hpp"

PEFT_BEGIN_NAMESPACE

namespace detail {

/// Product of the dimensions; none where one is negative or it does not fit an Index.
inline std::optional<Index> element_count(std::span<const Index> shape) noexcept {
  Index count = 1;
  for (const Index size : shape) {
    if (size < 0 || __builtin_mul_overflow(count, size, &count)) return std::nullopt;
  }
  return count;
}

/// Bytes of `elements` of a type; none where they are no whole blocks or the number does not fit.
inline std::optional<Index> byte_count(StoredType type, Index elements) noexcept {
  const StoredTypeInfo& info = info_of(type);
  Index bytes = 0;
  if (elements % info.block_elements != 0) return std::nullopt;
  if (__builtin_mul_overflow(elements / info.block_elements, Index{info.block_bytes}, &bytes)) return std::nullopt;
  return bytes;
}

/// "[8, 32]".
inline std::string shape_text(std::span<const Index> shape) {
  std::string result = "[";
  for (const Index size : shape) {
    if (result.size() > 1) result += ", ";
    result += std::to_string(size);
  }
  return result + "]";
}

}  // namespace detail

/// As handed out by SafetensorsFile and GgufFile it is fully checked: `bytes` lies in the file and fits type and shape.
/// One made by hand to be written has no `file`; its bytes belong to the caller.
struct TensorRef {
  std::string name;
  StoredType type = StoredType::kF32;
  std::vector<Index> shape;  ///< row-major, outermost first (GGUF stores it the other way round)
  std::span<const std::byte> bytes;
  std::shared_ptr<const MappedFile> file;  ///< keeps `bytes` alive

  Index elements() const noexcept { return detail::element_count(shape).value_or(0); }
  /// Seen as a matrix: the last dimension is a row.
  Index cols() const noexcept { return shape.empty() ? 1 : shape.back(); }
  Index rows() const noexcept {
    return shape.empty() ? 1 : detail::element_count(std::span(shape).first(shape.size() - 1)).value_or(0);
  }
  std::string shape_text() const { return detail::shape_text(shape); }
  /// For messages: `tensor "model.norm.weight" of FILE`.
  std::string where() const {
    std::string text = "tensor " + quote_text(name);
    if (file != nullptr) text += " of " + file->path().string();
    return text;
  }
  /// Whether read_f32 can read it; kReadableTypes names what it can.
  bool is_readable() const noexcept { return info_of(type).readable; }

  /// Writes all elements as float, dequantised where they are blocks. Throws FormatError for a type that is not readable.
  void read_f32(float* out) const { read_rows_f32(0, rows(), out); }

  /// Rows [first, first + count), cols() floats each. Different rows may be read by several threads at once. Throws
  /// FormatError for a type that is not readable, ShapeError for rows that do not exist.
  void read_rows_f32(Index first, Index count, float* out) const {
    if (!is_readable()) {
      fail<FormatError>("reading {} as float: its type is {}; readable are {}; convert the file to one of them", where(),
                        name_of(type), kReadableTypes);
    }
    check_size();
    if (first < 0 || count < 0 || first > rows() || count > rows() - first) {
      fail<ShapeError>("reading {}: rows {} to {}; expected rows within 0 to {}", where(), first, first + count, rows());
    }
    if (bytes.empty()) return;  // no rows, or rows of nothing: the other dimensions may be of any size
    const StoredTypeInfo& info = info_of(type);
    const Index row_bytes = cols() / info.block_elements * info.block_bytes;
    dequantize(type, bytes.data() + first * row_bytes, count * cols(), out);
  }

  /// All elements as a matrix [rows(), cols()].
  Matrix<float> to_matrix() const {
    Matrix<float> result(rows(), cols());
    read_f32(result.data());
    return result;
  }

  /// Whether view<T>() works: the type is T's and the bytes are aligned for it.
  template <Scalar T>
  bool has_view() const noexcept {
    return type == stored_type_of<T>() && reinterpret_cast<std::uintptr_t>(bytes.data()) % alignof(T) == 0;
  }
  /// The elements in place, [rows(), cols()]; keep `file` as long as the view. Throws FormatError where has_view() is
  /// false.
  template <Scalar T>
  MatrixView<const T> view() const {
    if (!has_view<T>()) {
      fail<FormatError>("viewing {} in place: it is {}{}; expected aligned {}; copy it with read_f32", where(),
                        name_of(type), type == stored_type_of<T>() ? ", not aligned" : "", name_of(stored_type_of<T>()));
    }
    check_size();
    return {reinterpret_cast<const T*>(bytes.data()), rows(), cols()};
  }

  /// Throws ShapeError where `bytes` does not fit type and shape: for one made by hand.
  void check_size() const {
    const std::optional<Index> count = detail::element_count(shape);
    const std::optional<Index> size = count ? detail::byte_count(type, *count) : std::nullopt;
    if (size && static_cast<std::size_t>(*size) == bytes.size() &&
        (info_of(type).in_safetensors || cols() % info_of(type).block_elements == 0)) {
      return;
    }
    fail<ShapeError>("{}: {} bytes; expected {} for {} {}", where(), bytes.size(),
                     size ? std::to_string(*size) : "rows of whole blocks and a size that can be addressed", name_of(type),
                     shape_text());
  }
};

/// A tensor to be written, over the caller's memory. Throws ShapeError where the rows are not contiguous.
template <Scalar T>
TensorRef tensor_ref(std::string name, MatrixView<const T> values) {
  if (!values.is_contiguous()) {
    fail<ShapeError>("tensor {}: its rows are {} elements apart; expected {}, without gaps", quote_text(name), values.stride,
                     values.cols);
  }
  const auto bytes = static_cast<std::size_t>(values.rows * values.cols) * sizeof(T);
  return {std::move(name), stored_type_of<T>(), {values.rows, values.cols},
          {reinterpret_cast<const std::byte*>(values.data), bytes}, nullptr};
}
template <Scalar T>
TensorRef tensor_ref(std::string name, VectorView<const T> values) {
  const auto bytes = static_cast<std::size_t>(values.size) * sizeof(T);
  return {std::move(name), stored_type_of<T>(), {values.size},
          {reinterpret_cast<const std::byte*>(values.data), bytes}, nullptr};
}

PEFT_END_NAMESPACE
