#include "peft/core/buffer.hpp"

#include <cstdint>

#include "peft/error.hpp"
#include "support/catch.hpp"

using namespace peft;

TEST_CASE("buffers are 64-byte aligned, move, clone and keep their memory when they shrink") {
  Buffer<float> buffer(37);
  CHECK(reinterpret_cast<std::uintptr_t>(buffer.data()) % kAlignment == 0);
  buffer.fill_zero();
  buffer[36] = 5.0f;
  Buffer<float> copy = buffer.clone();
  CHECK(copy[36] == 5.0f);
  CHECK(copy.data() != buffer.data());
  const float* before = buffer.data();
  Buffer<float> moved = std::move(buffer);
  CHECK(moved.data() == before);
  CHECK(buffer.empty());  // NOLINT(bugprone-use-after-move): the moved-from state is part of the contract
  moved.resize_discard(10);
  CHECK(moved.data() == before);
  CHECK(moved.size() == 10);
  moved.resize_discard(37);
  CHECK(moved.data() == before);
  moved.resize_discard(38);
  CHECK(moved.size() == 38);
  CHECK_THROWS_AS(Buffer<double>(Index{1} << 62), std::bad_alloc);
}

TEST_CASE("matrix views address rows by their stride") {
  Matrix<float> matrix = Matrix<float>::zeros(4, 6);
  for (Index i = 0; i < 4; ++i)
    for (Index j = 0; j < 6; ++j) matrix(i, j) = static_cast<float>(10 * i + j);
  const MatrixView<const float> block = matrix.view().row_range(1, 2).column_range(2, 3);
  CHECK(block.rows == 2);
  CHECK(block.cols == 3);
  CHECK(block.stride == 6);
  CHECK(block(1, 2) == 24.0f);
  CHECK_FALSE(block.is_contiguous());
  CHECK(matrix.view().is_contiguous());
  const MatrixView<const float> from_owner = matrix;
  CHECK(from_owner(3, 5) == 35.0f);
}

TEST_CASE("errors are one family and carry their text") {
  try {
    fail<ShapeError>("forward: x has {} columns; expected {}", 3, 4);
  } catch (const Error& error) {
    CHECK(std::string(error.what()) == "forward: x has 3 columns; expected 4");
  }
  CHECK_THROWS_AS(fail<FormatError>("a"), Error);
  CHECK_THROWS_AS(fail<NumericError>("a"), std::runtime_error);
}
