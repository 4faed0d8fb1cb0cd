#pragma once
/// All that cuBLASLt's choice of a kernel depends on: products that are equal in it share one choice.

#include <cstddef>
#include <functional>

#include "peft/core/scalar.hpp"
#include "peft/cuda/device_view.hpp"

PEFT_BEGIN_NAMESPACE
namespace cuda {

/// Whether an operand of a product is read as it stands or across.
enum class Transpose : std::uint8_t { kNo, kYes };

/// C [m,n] = α·op(A)·op(B) + β·C, row-major; op(A) [m,k], op(B) [k,n].
struct MatmulKey {
  Index m = 0, n = 0, k = 0;
  Index lda = 0, ldb = 0, ldc = 0;
  Transpose transpose_a = Transpose::kNo, transpose_b = Transpose::kNo;
  DType type = DType::kF32;    ///< of A, B and the bias
  DType c_type = DType::kF32;  ///< `type`, or kF32
  bool has_bias = false;
  bool adds = false;  ///< β is not 0
  /// Bytes, 1 to 16, of which every row's begin is a multiple: cuBLASLt's kernels differ in what they need.
  std::uint8_t align_a = 16, align_b = 16, align_c = 16;

  friend bool operator==(const MatmulKey&, const MatmulKey&) = default;
};

struct MatmulKeyHash {
  std::size_t operator()(const MatmulKey& key) const noexcept {
    std::size_t hash = 0;
    const auto add = [&hash](auto value) {
      hash ^= std::hash<Index>()(static_cast<Index>(value)) + 0x9E3779B97F4A7C15u + (hash << 6) + (hash >> 2);
    };
    add(key.m), add(key.n), add(key.k), add(key.lda), add(key.ldb), add(key.ldc);
    add(key.transpose_a), add(key.transpose_b), add(key.type), add(key.c_type), add(key.has_bias), add(key.adds);
    add(key.align_a), add(key.align_b), add(key.align_c);
    return hash;
  }
};

/// 16, 8, 4, 2 or 1: the most of which every row's begin is a multiple.
template <class T>
std::uint8_t row_alignment(DeviceMatrixView<T> view) noexcept {
  std::uint8_t bytes = 16;
  while (bytes > 1 && !is_aligned(view, bytes)) bytes = static_cast<std::uint8_t>(bytes / 2);
  return bytes;
}

}  // namespace cuda
PEFT_END_NAMESPACE
