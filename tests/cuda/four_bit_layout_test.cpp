// The packed order of a 4-bit weight and the way back, quantising and dequantising: the CPU's bits (kernels/quantize_four_bit.hpp).

#include <cstring>

#include "four_bit_weight.hpp"
#include "peft/cuda/kernels/four_bit_dequantize.cuh"
#include "peft/cuda/kernels/four_bit_quantize.cuh"
#include "peft/kernels/quantize_four_bit.hpp"
#include "support/catch.hpp"

namespace {

using namespace four_bit_test;
using peft::bf16;
using peft::f16;
using peft::FourBitCode;

template <class T>
bool same_bytes(const Buffer<T>& a, const Buffer<T>& b) {
  return a.bytes() == b.bytes() && std::memcmp(a.data(), b.data(), a.bytes()) == 0;
}

void check_packing(Index out, Index in, int block, bool nested) {
  INFO("out " << out << ", in " << in << ", block " << block << ", nested " << nested);
  Weight w(out, in, block, nested);
  // The reference of the layout: where the head of four_bit_layout.cuh says each code is.
  for (Index row = 0; row < out; ++row) {
    for (Index column = 0; column < in; ++column) {
      const Index brick = row / 32 * ((in + 63) / 64) + column / 64;
      const Index i = row % 32 / 4, j = column % 64 / 8;
      const Index quarter = 2 * (j / 4) + i / 4, chunk = i % 4 * 4 + j % 4;
      const Index byte = brick * 1024 + quarter * 256 + chunk * 16 + row % 4 * 4 + column % 8 / 2;
      const std::uint32_t code = column % 2 == 0 ? w.codes()[byte] >> 4 : w.codes()[byte] & 15u;
      if (w.table().value[code] != w.value(row, column)) REQUIRE(w.table().value[code] == w.value(row, column));
    }
  }
  // The device packs what the host packs, and both unpack it.
  Buffer<std::uint8_t> codes(w.codes().size()), nested_codes(w.nested_codes().size());
  Buffer<float> absmax(w.absmax().size());
  device::FourBitPackArgs args = w.pack_args();
  args.codes = codes.data();
  if (nested) args.nested_codes = nested_codes.data();
  if (!nested) args.absmax = absmax.data();
  REQUIRE(device::four_bit_pack(args, nullptr) == cudaSuccess);
  CHECK(same_bytes(codes, w.codes()));
  CHECK(same_bytes(absmax, w.absmax()));
  CHECK(same_bytes(nested_codes, w.nested_codes()));
  for (const bool on_host : {true, false}) {
    Buffer<std::uint8_t> flat_codes(w.flat_codes().size()), flat_nested(w.flat_nested_codes().size());
    Buffer<float> flat_absmax(w.flat_absmax().size());
    args.flat_codes = flat_codes.data();
    if (nested) args.flat_nested_codes = flat_nested.data();
    if (!nested) args.flat_absmax = flat_absmax.data();
    REQUIRE((on_host ? device::four_bit_unpack_host(args) : device::four_bit_unpack(args, nullptr) == cudaSuccess));
    CHECK(same_bytes(flat_codes, w.flat_codes()));
    CHECK(same_bytes(flat_absmax, w.flat_absmax()));
    CHECK(same_bytes(flat_nested, w.flat_nested_codes()));
  }
  REQUIRE_CLEAN();
}

template <class T>
void check_quantize(FourBitCode code, Index rows, Index cols, Index stride, int block) {
  INFO(name_of(peft::dtype_of<T>()) << ' ' << peft::name_of(code) << ", " << rows << " x " << cols << ", stride " << stride
                                    << ", block " << block);
  std::vector<T> values = random_values<T>(rows * stride, 9);
  // A block of zeros, and numbers exactly between two values.
  for (Index j = 0; j < std::min<Index>(cols, block); ++j) values[static_cast<std::size_t>(j)] = T(0.0f);
  const peft::kernels::FourBitTable& table = peft::kernels::table_of(code);
  if (rows * cols > 2 * block && cols > block + 16) {
    for (Index j = 0; j < 16; ++j) values[static_cast<std::size_t>(block + j)] = T(j == 15 ? 4.0f : 4.0f * table.threshold[j]);
  }
  Buffer<T> w(values, "w");
  const Index n = rows * cols, blocks = (n + block - 1) / block;
  Buffer<std::uint8_t> codes((n + 1) / 2, "codes"), expected_codes((n + 1) / 2);
  Buffer<float> absmax(blocks, "absmax"), expected_absmax(blocks);
  peft::SerialExecutor executor;
  REQUIRE(peft::kernels::quantize_four_bit(table, w.data(), rows, cols, stride, peft::dtype_of<T>(), block, expected_codes.data(),
                                           expected_absmax.data(), executor) == -1);
  device::FourBitQuantizeArgs<T> args{};
  args.w = w.data(), args.ldw = stride;
  args.rows = rows, args.cols = cols;
  args.block_size = block;
  std::copy(table.threshold, table.threshold + 16, args.threshold);
  std::copy(table.code_of_rank, table.code_of_rank + 16, args.code_of_rank);
  args.codes = codes.data();
  args.absmax = absmax.data();
  REQUIRE(device::four_bit_quantize(args, nullptr) == cudaSuccess);
  CHECK(peft_emulator::last_report().bank_conflicts == 0);
  REQUIRE_CLEAN();
  CHECK(same_bytes(absmax, expected_absmax));
  CHECK(same_bytes(codes, expected_codes));
}

/// Against the product rounded to float, then to T.
template <class T>
void check_dequantize(Index out, Index in, int block, bool nested, Index first, Index rows, Index ld,
                      FourBitCode code = FourBitCode::kNf4) {
  INFO(name_of(peft::dtype_of<T>()) << ", out " << out << ", in " << in << ", block " << block << ", nested " << nested);
  Weight w(out, in, block, nested, code);
  Buffer<T> flat(out * ld, "flat"), panel(rows * ld, "panel");
  device::FourBitDequantizeArgs<T> args{};
  args.codes = w.flat_codes().data();
  args.absmax = nested ? nullptr : w.flat_absmax().data();
  args.nested_codes = w.flat_nested_codes().data();
  args.nested_map = w.nested_map().data();
  args.nested_absmax = w.nested_absmax().data();
  args.nested_offset = Weight::kOffset;
  args.block_size = block;
  std::copy(w.table().value, w.table().value + 16, args.value);
  args.rows = out, args.cols = in;
  args.out = flat.data(), args.ldo = ld;
  REQUIRE(device::four_bit_dequantize(args, nullptr) == cudaSuccess);
  CHECK(peft_emulator::last_report().bank_conflicts == 0);
  device::FourBitPanelArgs<T> panel_args{w.packed(), first, rows, panel.data(), ld};
  REQUIRE(device::four_bit_dequantize_packed(panel_args, nullptr) == cudaSuccess);
  CHECK(peft_emulator::last_report().bank_conflicts == 0);
  REQUIRE_CLEAN();
  const auto is_same = [](T a, T b) { return std::memcmp(&a, &b, sizeof(T)) == 0; };
  for (Index row = 0; row < out; ++row) {
    for (Index column = 0; column < in; ++column) {
      INFO("row " << row << ", column " << column);
      const T expected(w(row, column));
      if (!is_same(flat[row * ld + column], expected)) REQUIRE(is_same(flat[row * ld + column], expected));
      if (row < first || row >= first + rows) continue;
      const T got = panel[(row - first) * ld + column];
      if (!is_same(got, expected)) REQUIRE(is_same(got, expected));
    }
  }
}

}  // namespace

TEST_CASE("four bits on the device: packed and unpacked without loss", "[cuda]") {
  check_packing(32, 64, 64, false);
  check_packing(70, 160, 32, true);
  check_packing(1, 4096, 4096, false);
  check_packing(33, 256, 128, true);
  check_packing(5, 75, 64, false);  // blocks over the ends of rows, an odd number of codes
  check_packing(9, 200, 64, true);
}

TEST_CASE("four bits on the device: quantised to the CPU's bits", "[cuda]") {
  check_quantize<float>(FourBitCode::kNf4, 8, 256, 256, 64);
  check_quantize<float>(FourBitCode::kFp4, 3, 333, 340, 64);
  check_quantize<f16>(FourBitCode::kNf4, 5, 128, 128, 32);
  check_quantize<bf16>(FourBitCode::kFp4, 9, 65, 65, 128);
  check_quantize<f16>(FourBitCode::kNf4, 1, 9000, 9000, 4096);
  check_quantize<bf16>(FourBitCode::kNf4, 2, 515, 520, 512);
  check_quantize<float>(FourBitCode::kNf4, 1, 1, 1, 32);
}

TEST_CASE("four bits on the device: codes move once, weights and maxima too", "[cuda]") {
  constexpr Index kOut = 32, kIn = 512, kCount = kOut * kIn, kBlocks = kCount / 64;
  const auto moved = [] {
    const auto report = peft_emulator::take_report();
    INFO(report.text() << report.counts_text());
    REQUIRE(report.clean());
    CHECK(report.bank_conflicts == 0);
    UNSCOPED_INFO(report.counts_text());
    return 32 * report.global_sectors;
  };
  Weight w(kOut, kIn, 64, false);
  peft_emulator::take_report();
  // Codes and maxima once on the packed side. On the flat one 16 bytes of a row at a time, half a sector, whose other half the same
  // block takes; and maxima, which packing transposes, one by one.
  device::FourBitPackArgs pack = w.pack_args();
  REQUIRE(device::four_bit_pack(pack, nullptr) == cudaSuccess);
  CHECK(moved() == 3 * kCount / 2 + (4 + 32) * kBlocks);
  REQUIRE(device::four_bit_unpack(pack, nullptr) == cudaSuccess);
  CHECK(moved() == 3 * kCount / 2 + (4 + 32) * kBlocks);

  const auto converted = [&](auto zero) {
    using T = decltype(zero);
    constexpr Index kSize = sizeof(T);
    Buffer<T> dense(kCount, "dense");
    device::FourBitDequantizeArgs<T> args{};
    args.codes = w.flat_codes().data();
    args.absmax = w.flat_absmax().data();
    args.block_size = 64;
    std::copy(w.table().value, w.table().value + 16, args.value);
    args.rows = kOut, args.cols = args.ldo = kIn;
    args.out = dense.data();
    REQUIRE(device::four_bit_dequantize(args, nullptr) == cudaSuccess);
    // A lane's eight weights of float are 32 bytes, which two instructions move, each touching every sector. A warp has four
    // maxima, half a sector: in 16 bits 2.5 % above what has to move.
    const Index weights = kSize == 4 ? 2 * kCount * kSize : kCount * kSize;
    const Index bytes = weights + kCount / 2 + 8 * kBlocks;
    if (kSize == 2) CHECK(100 * bytes <= 105 * (weights + kCount / 2 + 4 * kBlocks));
    CHECK(moved() == bytes);
    REQUIRE(device::four_bit_dequantize_packed(device::FourBitPanelArgs<T>{w.packed(), 0, kOut, dense.data(), kIn}, nullptr) ==
            cudaSuccess);
    CHECK(moved() == bytes);
    Buffer<std::uint8_t> codes(kCount / 2, "codes");
    Buffer<float> absmax(kBlocks, "absmax");
    device::FourBitQuantizeArgs<T> quantize{};
    quantize.w = dense.data(), quantize.ldw = kIn;
    quantize.rows = kOut, quantize.cols = kIn;
    quantize.block_size = 64;
    std::copy(w.table().threshold, w.table().threshold + 16, quantize.threshold);
    std::copy(w.table().code_of_rank, w.table().code_of_rank + 16, quantize.code_of_rank);
    quantize.codes = codes.data();
    quantize.absmax = absmax.data();
    REQUIRE(device::four_bit_quantize(quantize, nullptr) == cudaSuccess);
    CHECK(moved() == bytes);
  };
  converted(f16());
  converted(float());
}

TEST_CASE("four bits on the device: a block that is not finite has no maximum", "[cuda]") {
  std::vector<float> values = random_values<float>(192, 9);
  values[70] = std::numeric_limits<float>::infinity();
  Buffer<float> w(values, "w"), absmax(3, "absmax");
  Buffer<std::uint8_t> codes(96, "codes");
  device::FourBitQuantizeArgs<float> args{};
  args.w = w.data(), args.ldw = 192;
  args.rows = 1, args.cols = 192;
  args.block_size = 64;
  args.codes = codes.data();
  args.absmax = absmax.data();
  REQUIRE(device::four_bit_quantize(args, nullptr) == cudaSuccess);
  CHECK(std::isfinite(absmax[0]));
  CHECK(std::isnan(absmax[1]));
  CHECK(std::isfinite(absmax[2]));
  args.block_size = 48;
  CHECK(device::four_bit_quantize(args, nullptr) == cudaErrorInvalidValue);
}

TEST_CASE("four bits on the device: dequantised to the CPU's bits", "[cuda]") {
  check_dequantize<float>(37, 192, 64, true, 5, 30, 192);
  check_dequantize<f16>(33, 96, 32, false, 0, 33, 104, FourBitCode::kFp4);
  check_dequantize<bf16>(9, 200, 64, true, 2, 3, 201);
  check_dequantize<f16>(5, 75, 64, false, 1, 4, 75);
}
