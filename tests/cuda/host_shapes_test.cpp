// The host's side of peft::cuda as far as it needs no GPU: shapes, messages, choices, orders of rows and places in memory.
#include <string>
#include <vector>

#include "peft/cuda/adamw_state.hpp"
#include "peft/cuda/adapter_row_map.hpp"
#include "peft/cuda/buffer.hpp"
#include "peft/cuda/check_shape.hpp"
#include "peft/cuda/device_info.hpp"
#include "peft/cuda/device_matrix.hpp"
#include "peft/cuda/four_bit_product.hpp"
#include "peft/cuda/linear.hpp"
#include "peft/cuda/lora_route.hpp"
#include "peft/cuda/matmul.hpp"
#include "peft/cuda/prefetch.hpp"
#include "peft/cuda/transfer.hpp"
#include "support/catch.hpp"

namespace {

using namespace peft;
using namespace peft::cuda;

// Never read: views of a device's memory.
template <class T>
T* at(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

template <class E, class Call>
std::string text_of(Call&& call) {
  try {
    call();
  } catch (const E& error) {
    return error.what();
  }
  return "nothing was thrown";
}

/// A stranger's layer: forward only.
struct ForwardOnly {
  using value_type = float;
  Index in_features() const { return 8; }
  Index out_features() const { return 4; }
  void forward(DeviceMatrixView<const float>, DeviceMatrixView<float>, Context&) const {}
};
static_assert(DeviceLinearLike<ForwardOnly> && !DeviceFusedLowRank<ForwardOnly> && !DeviceBackwardLinear<ForwardOnly> &&
              !DeviceFusedInputGrad<ForwardOnly> && !DeviceSpareColumns<ForwardOnly>);

/// One that also goes back, and says what it needs.
struct Trainable : ForwardOnly {
  void backward_input(DeviceMatrixView<const float>, DeviceMatrixView<float>, Context&) const {}
  Index scratch_bytes(Index rows) const { return 100 * rows; }
};
static_assert(DeviceBackwardLinear<Trainable> && !DeviceLinearLike<int, float>);

// A view of one side is not one of the other's.
static_assert(!std::is_convertible_v<DeviceMatrixView<float>, MatrixView<float>> &&
              !std::is_convertible_v<MatrixView<float>, DeviceMatrixView<float>> &&
              std::is_convertible_v<DeviceMatrixView<float>, DeviceMatrixView<const float>> &&
              !std::is_convertible_v<DeviceMatrixView<const float>, DeviceMatrixView<float>>);

TEST_CASE("cuda views name what does not fit") {
  const DeviceMatrixView<const float> x(at<const float>(4096), 3, 8, 12, 4);
  CHECK_NOTHROW(cuda::detail::check_shape("f", "x", x, 3, 8));
  CHECK(text_of<ShapeError>([&] { cuda::detail::check_shape("Lora::forward", "x", x, 3, 9); }) ==
        "Lora::forward: x is [3, 8]; expected [3, 9]");
  const DeviceMatrixView<const float> narrow(at<const float>(4096), 3, 8, 11, 4);
  CHECK(text_of<ShapeError>([&] { cuda::detail::check_shape("f", "x", narrow, 3, 8); }) ==
        "f: x has a row stride of 11; expected at least 12: 8 columns and 4 spare ones");
  CHECK(text_of<ShapeError>([&] { cuda::detail::check_shape("f", "x", DeviceMatrixView<float>(nullptr, 3, 8), 3, 8); }) ==
        "f: x [3, 8] has no memory; expected a device pointer");
  CHECK_NOTHROW(cuda::detail::check_shape("f", "x", DeviceMatrixView<float>(nullptr, 0, 8), 0, 8));

  const DeviceMatrixView<float> y(at<float>(4096 + 40), 2, 4);
  CHECK(text_of<ShapeError>([&] { cuda::detail::check_no_alias("f", "y", y, "x", x); }) ==
        "f: y and x share memory; expected y apart from what it is computed from");
  CHECK_NOTHROW(cuda::detail::check_no_alias("f", "y", DeviceMatrixView<float>(at<float>(4096 + 3 * 48), 2, 4), "x", x));
}

TEST_CASE("cuda spare columns stand behind the rows") {
  const DeviceMatrixView<const f16> x(at<const f16>(1024), 5, 64, 80, 16);
  const DeviceMatrixView<f16> s = x.spare_columns(8);
  CHECK(reinterpret_cast<std::uintptr_t>(s.data) == 1024 + 128);
  CHECK((s.rows == 5 && s.cols == 8 && s.stride == 80));
  const DeviceMatrixView<const f16> wide = x.widened(8);
  CHECK((wide.cols == 72 && wide.spare == 8 && wide.data == x.data));
  CHECK((x.row_range(1, 2).spare == 16 && x.column_range(3, 4).spare == 0));
}

TEST_CASE("cuda rows begin at multiples of 16 bytes") {
  CHECK(aligned_stride<f16>(4096) == 4096);
  CHECK(aligned_stride<f16>(4097) == 4104);
  CHECK(aligned_stride<float>(17) == 20);
  CHECK(aligned_stride<float>(0) == 0);
  CHECK(row_alignment(DeviceMatrixView<f16>(at<f16>(256), 4, 24)) == 16);
  CHECK(row_alignment(DeviceMatrixView<f16>(at<f16>(256), 4, 20)) == 8);
  CHECK(row_alignment(DeviceMatrixView<f16>(at<f16>(256), 4, 17)) == 2);
  CHECK(row_alignment(DeviceMatrixView<f16>(at<f16>(256), 1, 17)) == 16);  // one row: no other begins
  CHECK(row_alignment(DeviceMatrixView<float>(at<float>(260), 4, 16)) == 4);
  CHECK(text_of<ShapeError>([] { DeviceMatrix<float>(2, -1); }) ==
        "DeviceMatrix: [2, -1] with 0 spare columns; expected sizes from 0");
  CHECK(text_of<ShapeError>([] { DeviceMatrix<float>(Index{1} << 61, 8); }).find("can be addressed") != std::string::npos);
  CHECK(text_of<ShapeError>([] { DeviceBuffer<float>(-1); }) == "DeviceBuffer: -1 elements; expected a count from 0");
  CHECK(DeviceMatrix<float>(0, 8).empty());  // asks the driver for nothing
}

TEST_CASE("cuda products are known by all that a choice depends on") {
  const DeviceMatrixView<const f16> x(at<const f16>(256), 7, 64), w(at<const f16>(512), 32, 64);
  const DeviceMatrixView<f16> y(at<f16>(1024), 7, 32);
  const f16* none = nullptr;
  const MatmulKey key = Matmul::key_of(Transpose::kNo, x, Transpose::kYes, w, 0.0f, none, y);
  CHECK((key.m == 7 && key.n == 32 && key.k == 64 && key.lda == 64 && key.ldb == 64 && key.ldc == 32));
  CHECK((key.type == DType::kF16 && key.c_type == DType::kF16 && !key.has_bias && !key.adds));
  CHECK(Matmul::text_of(key) == "f16 [7, 64] times [64, 32] (stored across) to f16");
  const auto differs = [&key](const MatmulKey& other) {
    return !(key == other) && MatmulKeyHash()(key) != MatmulKeyHash()(other);
  };
  CHECK(key == Matmul::key_of(Transpose::kNo, x, Transpose::kYes, w, 0.0f, none, y));
  CHECK(differs(Matmul::key_of(Transpose::kNo, x, Transpose::kYes, w, 1.0f, none, y)));
  CHECK(differs(Matmul::key_of(Transpose::kNo, x, Transpose::kYes, w, 0.0f, x.data, y)));
  CHECK(differs(Matmul::key_of(Transpose::kNo, DeviceMatrixView<const f16>(at<const f16>(258), 7, 64), Transpose::kYes, w, 0.0f,
                               none, y)));
  CHECK(differs(
      Matmul::key_of(Transpose::kNo, x, Transpose::kYes, DeviceMatrixView<const f16>(w.data, 32, 64, 72), 0.0f, none, y)));
  CHECK(differs(
      Matmul::key_of(Transpose::kNo, x, Transpose::kYes, w, 0.0f, none, DeviceMatrixView<float>(at<float>(1024), 7, 32))));
  // dA = dSᵀ·x: [r, n] across, [n, in].
  const MatmulKey across =
      Matmul::key_of(Transpose::kYes, x, Transpose::kNo, x, 0.0f, none, DeviceMatrixView<float>(at<float>(1024), 64, 64));
  CHECK((across.m == 64 && across.k == 7 && across.n == 64));

  CHECK(text_of<ShapeError>([&] { Matmul::key_of(Transpose::kNo, x, Transpose::kNo, w, 0.0f, none, y); }) ==
        "Matmul: [7, 64] times [32, 64]; expected inner sizes that are equal, got 64 and 32");
  CHECK(text_of<ShapeError>([&] {
          Matmul::key_of(Transpose::kNo, x, Transpose::kYes, w, 0.0f, none, DeviceMatrixView<f16>(y.data, 7, 31));
        }) == "Matmul: the result is [7, 31]; expected [7, 32]");
}

TEST_CASE("cuda routes of LoRA follow rows, type and device") {
  using R = LoraRoute;
  const auto route = [](DType type, int sm, Index rows, bool columns) { return choose_lora_route({type, sm, rows, columns}); };
  CHECK(route(DType::kF16, 80, 4096, false) == R::kFused);
  CHECK(route(DType::kF16, 80, 4096, true) == R::kSpareColumns);
  CHECK(route(DType::kF16, 80, 16, true) == R::kFused);
  CHECK(route(DType::kBF16, 90, 255, false) == R::kFused);
  CHECK(route(DType::kBF16, 90, 256, false) == R::kTwoProducts);
  CHECK(route(DType::kBF16, 100, 256, true) == R::kSpareColumns);
  CHECK(route(DType::kBF16, 75, 4096, true) == R::kFused);
  CHECK(route(DType::kF32, 90, 31, false) == R::kFused);
  CHECK(route(DType::kF32, 90, 32, false) == R::kTwoProducts);
  using P = FourBitProduct;
  CHECK(choose_four_bit_product({DType::kF16, 89, 4096}) == P::kPacked);
  CHECK(choose_four_bit_product({DType::kF16, 90, kRowsOfPanels - 1}) == P::kPacked);
  CHECK(choose_four_bit_product({DType::kF16, 90, kRowsOfPanels}) == P::kPanel);
  CHECK(choose_four_bit_product({DType::kF32, 80, kRowsOfFloatPanels}) == P::kPanel);
  CHECK(panel_rows(4096, 8192) == 4096);
  CHECK(panel_rows(28672, 2 * 8192) == 8192);  // 128 MiB of 448
  CHECK(panel_rows(28672, kPanelBytes) == 256);
}

TEST_CASE("cuda batches sort rows by adapter and keep their order") {
  const std::vector<std::int32_t> of = {2, -1, 0, 2, 0, -1, 2};
  const AdapterRowOrder order = AdapterRowOrder::of(of, 4);
  CHECK(order.rows == std::vector<std::int32_t>{2, 4, 0, 3, 6});
  REQUIRE(order.segments.size() == 4);
  const auto is = [&order](std::size_t i, int first, int count) {
    return order.segments[i].first == first && order.segments[i].count == count;
  };
  CHECK((is(0, 0, 2) && is(1, 2, 0) && is(2, 2, 3) && is(3, 5, 0)));
  CHECK(order.most_rows == 3);
  CHECK(AdapterRowOrder::of({}, 2).rows.empty());
  const std::vector<std::int32_t> wrong = {0, 4};
  CHECK(text_of<ConfigError>([&] { AdapterRowOrder::of(wrong, 4); }) ==
        "AdapterRowMap: row 1 has adapter 4; expected one from 0 to 3, or -1 for none");
  CHECK(text_of<ShapeError>([] { AdapterRowMap(0, 1); }) ==
        "AdapterRowMap: 0 rows, 1 adapters; expected 1 to 2147483647 rows and 1 to 65535 adapters");
}

TEST_CASE("cuda moments lie one parameter behind the other") {
  std::vector<AdamWPlace> places(3);
  places[0].size = 5;
  places[1].size = 1000, places[1].is_8bit = true;
  places[2].size = 4096;
  const Index bytes = place_moments(places);
  CHECK((places[0].m == 0 && places[0].v == 32 && places[0].end == 64));
  CHECK((places[1].m == 256 && places[1].v == 256 + 1008 && places[1].m_absmax == 256 + 2016));
  CHECK((places[1].blocks() == 4 && places[1].v_absmax == places[1].m_absmax + 16 && places[1].end == places[1].v_absmax + 16));
  CHECK((places[2].m % 256 == 0 && places[2].m >= places[1].end && places[2].v == places[2].m + 16384));
  CHECK(bytes == places[2].end);
  for (const AdamWPlace& place : places) {
    for (const Index part : {place.m, place.v, place.m_absmax, place.v_absmax}) CHECK(part % 16 == 0);
  }
}

TEST_CASE("cuda scratch is asked of layers that need some") {
  CHECK(scratch_bytes_of(ForwardOnly(), 10) == 0);
  CHECK(scratch_bytes_of(Trainable(), 10) == 1000);
  CHECK(Context::padded(1) == 256);
  CHECK(Context::padded(0) == 0);
}

TEST_CASE("cuda types are changed on the host, rounded once") {
  CHECK(cuda::detail::converted<f16>(1.0f + 0x1p-11f).bits == f16(1.0f).bits);  // halfway: to even
  CHECK(cuda::detail::converted<bf16>(1.0f + 0x1p-7f).bits == 0x3F81);
  CHECK(cuda::detail::converted<float>(f16(0.5f)) == 0.5f);
  const float values[6] = {};
  CHECK(text_of<ShapeError>([&] {
          upload(MatrixView<const float>(values, 2, 3), DeviceMatrixView<f16>(at<f16>(256), 2, 4), nullptr, "lora_A");
        }) == "cuda::upload: lora_A is [2, 4]; expected [2, 3]");
  CHECK(text_of<ShapeError>([&] {
          upload(VectorView<const float>(values, 6), DeviceVectorView<float>(at<float>(256), 5), nullptr, "the bias");
        }) == "cuda::upload: the bias has 6 elements; expected 5");
  CHECK_NOTHROW(upload(MatrixView<const float>(values, 0, 3), DeviceMatrixView<f16>(nullptr, 0, 3), nullptr));
}

TEST_CASE("cuda errors say what was done and what helps") {
  CHECK_NOTHROW(check(cudaSuccess, "nothing"));
  const std::string text = text_of<CudaError>([] { check(cudaErrorMemoryAllocation, "DeviceBuffer: {} bytes", 4096); });
  CHECK(text.find("DeviceBuffer: 4096 bytes: cudaErrorMemoryAllocation (") == 0);
  CHECK(text.find("expected cudaSuccess; ") != std::string::npos);
  CHECK(text_of<CudaError>([] { check(cudaErrorStreamCaptureUnsupported, "a"); }).find("reserve()") != std::string::npos);
  CHECK(text_of<CudaError>([] { check(CUBLAS_STATUS_NOT_SUPPORTED, "Matmul"); }).find("Matmul: CUBLAS_STATUS_NOT_SUPPORTED") ==
        0);
  CHECK_THROWS_AS(check(cudaErrorNoDevice, "a"), Error);  // of the library's one family
  if (device_count() == 0) {
    CHECK(!no_device_reason().empty());
    CHECK_THROWS_AS(Context(nullptr), CudaError);
    CHECK_THROWS_AS(DeviceBuffer<float>(1), CudaError);
  } else {
    CHECK(no_device_reason().empty());
  }
}

}  // namespace
