// A GGUF's blocks: values against the gguf package's bit for bit, as files are read and as kernels decode them, whole and in
// every part; what is refused.
#include <cstring>
#include <string>
#include <vector>

#include "peft/checkpoint/gguf_blocks.hpp"
#include "peft/io/gguf.hpp"
#include "random_blocks.hpp"
#include "support/catch.hpp"
#include "unit/io/scratch.hpp"

using namespace peft;
using io_test::message_of;

namespace {

bool same_bits(const float* got, const float* want, Index count) {
  return std::memcmp(got, want, static_cast<std::size_t>(count) * sizeof(float)) == 0;
}

const std::string kData = PEFT_GOLDEN_DIR "/gguf/";

}  // namespace

TEST_CASE("Blocks decode to the gguf package's values") {
  const GgufFile blocks = GgufFile::open(kData + "blocks.gguf.bin"), values = GgufFile::open(kData + "values.gguf.bin");
  REQUIRE(blocks.tensors().size() == kBlockFormats.size());
  for (const TensorRef& tensor : blocks.tensors()) {
    INFO(tensor.name);
    const Matrix<float> want = values.tensor(tensor.name).to_matrix();
    CHECK(same_bits(tensor.to_matrix().data(), want.data(), want.size()));
    const GgufTensor packed = gguf_tensor(tensor);
    REQUIRE(name_of(packed.format()) == tensor.name);
    CHECK(static_cast<const void*>(packed.bytes().data) == static_cast<const void*>(tensor.bytes.data()));
    CHECK(packed.keep_alive() == tensor.file);
    Matrix<float> got(want.rows(), want.cols());
    packed.dequantize(got.view());
    CHECK(same_bits(got.data(), want.data(), want.size()));
  }
}

TEST_CASE("Any part of a row of blocks decodes as the whole does") {
  Philox rng(3);
  for (const BlockFormatInfo& info : kBlockFormats) {
    INFO(info.name);
    const Index cols = info.elements == 32 ? 96 : 512;
    const GgufTensor tensor = gguf_test::random_blocks(info.format, 2, cols, rng);
    Matrix<float> whole(2, cols);
    tensor.dequantize(whole.view());
    std::vector<float> part(static_cast<std::size_t>(cols) + 1);
    bool same = true, kept = true;
    for (Index first = 0; first < cols; first += first % 32 < 5 ? 1 : 5) {
      for (Index count = 0; count <= cols - first; count += count < 40 ? 1 : 13) {
        part[static_cast<std::size_t>(count)] = 7;
        tensor.dequantize_row(1, first, count, part.data());
        same = same && same_bits(part.data(), whole.row(1) + first, count);
        kept = kept && part[static_cast<std::size_t>(count)] == 7;
      }
    }
    CHECK(same);
    CHECK(kept);
    Matrix<bf16> narrow(2, cols);
    tensor.dequantize(narrow.view());
    bool rounded_once = true;
    for (Index i = 0; i < narrow.size(); ++i) rounded_once = rounded_once && narrow.data()[i].bits == bf16(whole.data()[i]).bits;
    CHECK(rounded_once);
    const GgufTensor turned = tensor.with_rows([](Index i) { return 1 - i; });
    Buffer<float> row(cols);
    turned.dequantize_row(0, 0, cols, row.data());
    CHECK(same_bits(row.data(), whole.row(1), cols));
  }
}

TEST_CASE("Blocks that do not fit are refused by name") {
  Philox rng(4);
  const GgufTensor good = gguf_test::random_blocks(BlockFormat::kQ4K, 2, 512, rng);
  const auto message = [&](BlockFormat format, Index rows, Index cols, Index bytes) {
    return message_of<ShapeError>([&] { GgufTensor(format, rows, cols, {good.bytes().data, bytes}, nullptr, "w"); });
  };
  CHECK(message(BlockFormat::kQ4_0, 2, 40, 48) == "w: [2, 40] in Q4_0; expected columns in whole blocks of 32");
  CHECK(message(BlockFormat::kQ4K, 2, 384, 432) == "w: [2, 384] in Q4_K; expected columns in whole blocks of 256");
  CHECK(message(BlockFormat::kQ4K, 2, 512, 575) == "w: 575 bytes; expected 576 for [2, 512] in Q4_K");
  CHECK(message(BlockFormat::kQ8_0, Index{1} << 60, 32, 0).find("expected") != std::string::npos);
  CHECK(message(BlockFormat::kQ8_0, -1, 32, 0).find("whole blocks") != std::string::npos);
  CHECK(message_of<ShapeError>([&] { good.dequantize_row(0, 500, 13, nullptr); }).find("elements 500 to 513 of row 0") !=
        std::string::npos);
  Matrix<float> wrong(2, 500);
  CHECK(message_of<ShapeError>([&] { good.dequantize(wrong.view()); }).find("expected [2, 512]") != std::string::npos);

  std::vector<std::byte> bytes(256);
  CHECK(message_of<FormatError>([&] { gguf_tensor({"blk.0.attn_q.weight", StoredType::kQ2K, {1, 256}, bytes, nullptr}); }) ==
        "computing on the blocks of tensor \"blk.0.attn_q.weight\": its type is Q2_K; expected Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, "
        "Q4_K, Q5_K or Q6_K");
  CHECK(message_of<ShapeError>([&] { gguf_tensor({"t", StoredType::kQ6K, {2, 256}, bytes, nullptr}); }) ==
        "tensor \"t\": 256 bytes; expected 420 for [2, 256] in Q6_K");
}
