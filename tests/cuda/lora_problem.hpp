#pragma once
/// Matrices in the emulator's memory, sums in double beside which kernels' results are held, and dropout masks: what the
/// tests of the dense kernels share.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "peft/core/rng.hpp"
#include "peft/cuda/kernels/device.cuh"
#include "support/catch.hpp"

namespace lora_problem {

using peft::Index;

/// Rows `ld` apart, the first element `offset` elements behind an aligned address. What is between rows stays not a number.
template <class T>
class Matrix {
 public:
  Matrix(Index rows, Index columns, Index pad, const char* name, Index offset = 0)
      : rows_(rows), columns_(columns), ld_(columns + pad), offset_(offset), memory_(rows * ld_ + offset, name) {}
  /// Normal numbers of a seed.
  Matrix(Index rows, Index columns, Index pad, unsigned seed, const char* name, Index offset = 0)
      : Matrix(rows, columns, pad, name, offset) {
    std::mt19937 random(seed);
    std::normal_distribution<float> draw;
    for (Index i = 0; i < rows; ++i) {
      for (Index j = 0; j < columns; ++j) data()[i * ld_ + j] = T(draw(random));
    }
  }

  Index rows() const { return rows_; }
  Index columns() const { return columns_; }
  Index ld() const { return ld_; }
  T* data() { return memory_.data() + offset_; }
  const T* data() const { return memory_.data() + offset_; }
  double operator()(Index i, Index j) const { return static_cast<double>(static_cast<float>(data()[i * ld_ + j])); }
  std::vector<float> values() const {
    std::vector<float> all;
    for (Index i = 0; i < rows_; ++i) {
      for (Index j = 0; j < columns_; ++j) all.push_back(static_cast<float>((*this)(i, j)));
    }
    return all;
  }
  /// Whether nothing was stored between the rows: a new buffer's bytes are 0xFF.
  bool is_padding_untouched() const {
    for (Index at = 0; at < memory_.size(); ++at) {
      const Index in_row = (at - offset_) % ld_;
      if (at >= offset_ && in_row < columns_) continue;
      unsigned char bytes[sizeof(T)];
      std::memcpy(bytes, memory_.data() + at, sizeof(T));
      for (const unsigned char byte : bytes) {
        if (byte != 0xFF) return false;
      }
    }
    return true;
  }

 private:
  Index rows_, columns_, ld_, offset_;
  peft_emulator::Buffer<T> memory_;
};

/// Half the distance of neighbours, relative: 2^-24, 2^-11, 2^-8.
template <class T>
constexpr double unit() {
  return sizeof(T) == 4 ? 0x1p-24 : std::is_same_v<T, peft::f16> ? 0x1p-11 : 0x1p-8;
}

/// A sum in double, and the bound of its error where n terms are added in float in any order.
struct Sum {
  double value = 0;
  double magnitude = 0;
  Index terms = 0;

  void add(double term) {
    value += term;
    magnitude += std::abs(term);
    ++terms;
  }
  void scale(double by) {
    value *= by;
    magnitude *= std::abs(by);
  }
  /// Rounded once to Out at the end.
  template <class Out>
  bool matches(double got) const {
    const double error = static_cast<double>(terms + 4) * 0x1p-24 * magnitude + unit<Out>() * std::abs(value) + 0x1p-24;
    return std::abs(got - value) <= error;
  }
};

/// A mask as core/rng.hpp makes it; p = 0: none.
class Mask {
 public:
  Mask(Index rows, Index columns, float p, Index pad = 0) : stride_((columns + 7) / 8 + pad), p_(p), bits_(rows * stride_, "mask") {
    for (Index i = 0; i < rows; ++i) peft::dropout_mask_row({7, 3, 5, 11}, i, columns, p, bits_.data() + i * stride_);
  }
  const std::uint8_t* bits() const { return p_ == 0.0f ? nullptr : bits_.data(); }
  Index stride() const { return stride_; }
  float scale() const { return 1.0f / (1.0f - p_); }
  double factor(Index i, Index j) const {
    if (p_ == 0.0f) return 1.0;
    return (bits_[i * stride_ + j / 8] >> (j % 8)) & 1 ? static_cast<double>(scale()) : 0.0;
  }

 private:
  Index stride_;
  float p_;
  peft_emulator::Buffer<std::uint8_t> bits_;
};

/// The launches since the last call found nothing, and no access to shared memory met a bank conflict.
inline void require_clean_without_conflicts() {
  const peft_emulator::Report report = peft_emulator::take_report();
  INFO(report.text());
  REQUIRE(report.clean());
  INFO(report.counts_text());
  REQUIRE(report.bank_conflicts == 0);
}

/// Bytes of the sectors of 32 that the launches since the last call touched; they found nothing and met no bank conflict.
inline Index moved_bytes() {
  const peft_emulator::Report report = peft_emulator::take_report();
  INFO(report.text() << report.counts_text());
  REQUIRE(report.clean());
  REQUIRE(report.bank_conflicts == 0);
  UNSCOPED_INFO(report.counts_text());
  return 32 * report.global_sectors;
}

/// Every element of `got` against sum(i, j).
template <class T, class F>
void require_matches(const Matrix<T>& got, F&& sum) {
  for (Index i = 0; i < got.rows(); ++i) {
    for (Index j = 0; j < got.columns(); ++j) {
      const Sum expected = sum(i, j);
      if (!expected.template matches<T>(got(i, j))) {
        FAIL("(" << i << ", " << j << ") of [" << got.rows() << ", " << got.columns() << "] is " << got(i, j) << "; expected "
                 << expected.value << ", magnitude " << expected.magnitude);
      }
    }
  }
  REQUIRE(got.is_padding_untouched());
}

}  // namespace lora_problem
