// GGUF: metadata, tensors, dequantisation against the gguf package, and everything that is refused.

#include "peft/io/gguf.hpp"

#include <cstring>

#include "gguf_builder.hpp"
#include "support/catch.hpp"

using namespace peft;
using namespace io_test;

namespace {

constexpr std::uint32_t kU8 = 0, kI8 = 1, kU16 = 2, kI16 = 3, kU32 = 4, kI32 = 5, kF32 = 6, kBool = 7, kString = 8,
                        kArray = 9, kU64 = 10, kI64 = 11, kF64 = 12;

/// One value of every kind, two tensors.
GgufBuilder good_builder(std::uint32_t version = 3) {
  GgufBuilder b;
  b.head(2, 17, version);
  b.value<std::uint8_t>("u8", kU8, 200).value<std::int8_t>("i8", kI8, -5);
  b.value<std::uint16_t>("u16", kU16, 60000).value<std::int16_t>("i16", kI16, -300);
  b.value<std::uint32_t>("u32", kU32, 4000000000u).value<std::int32_t>("i32", kI32, -70000);
  b.value<float>("f32", kF32, 0.5f).value<std::uint8_t>("yes", kBool, 1).value<std::uint8_t>("no", kBool, 0);
  b.value<std::uint64_t>("u64", kU64, 1ull << 63).value<std::int64_t>("i64", kI64, -(1ll << 40));
  b.value<double>("f64", kF64, 1e-300);
  b.text_value("text", "grüße");
  b.array("ints", kI32, 3).number<std::int32_t>(1).number<std::int32_t>(-2).number<std::int32_t>(3);
  b.array("bools", kBool, 2).number<std::uint8_t>(1).number<std::uint8_t>(0);
  b.array("texts", kString, 3).text("a").text("").text("\xe4\xb8");  // the last is a part of a character
  b.array("nested", kArray, 2);
  b.number(kU8).number<std::uint64_t>(2).number<std::uint8_t>(1).number<std::uint8_t>(2);
  b.number(kString).number<std::uint64_t>(1).text("x");
  b.tensor("m", {2, 3}, 0, 0).tensor("h", {4}, 1, 32);
  b.align();
  for (int i = 0; i < 6; ++i) b.number(static_cast<float>(i) - 2.5f);
  b.align();
  for (int i = 0; i < 4; ++i) b.number(f16(static_cast<float>(i) * 0.25f).bits);
  return b;
}

struct Case {
  const char* what;
  std::string content;
  const char* message;
};

/// One tensor "t" of these sizes and type, with data.
std::string one_tensor(std::initializer_list<std::uint64_t> sizes, std::uint32_t type, std::uint64_t offset,
                       std::size_t data) {
  return GgufBuilder().head(1, 0).tensor("t", sizes, type, offset).align().zeros(data).bytes();
}

/// One value under the key "k": what follows the key.
GgufBuilder one_value() { return std::move(GgufBuilder().head(0, 1).text("k")); }

std::string aligned(std::uint32_t alignment) {
  return GgufBuilder().head(0, 1).value<std::uint32_t>("general.alignment", kU32, alignment).bytes();
}

std::vector<Case> bad_files() {
  const std::string good = good_builder().bytes();
  constexpr std::uint64_t kHuge = ~0ull;
  GgufBuilder deep = one_value();
  deep.number(kArray);
  for (int i = 0; i < 2000; ++i) deep.number(kArray).number<std::uint64_t>(1);
  return {
      {"empty", "", "the magic number"},
      {"another magic number", "GGML" + good.substr(4), "expected \"GGUF\""},
      {"magic number reversed", "FUGG" + good.substr(4), "expected \"GGUF\""},
      {"version 1", GgufBuilder().head(0, 0, 1).bytes(), "its version is 1"},
      {"version 4", GgufBuilder().head(0, 0, 4).bytes(), "its version is 4"},
      {"version 0", GgufBuilder().head(0, 0, 0).bytes(), "its version is 0"},
      {"big-endian", GgufBuilder().magic().number<std::uint32_t>(0x03000000).zeros(16).bytes(), "big-endian"},
      {"more tensors than bytes", GgufBuilder().head(kHuge, 0).zeros(100).bytes(), "number of tensors"},
      {"more values than bytes", GgufBuilder().head(0, kHuge).zeros(100).bytes(), "number of metadata values"},
      {"counts whose product overflows", GgufBuilder().head(1ull << 60, 0).zeros(100).bytes(), "number of tensors"},
      {"key longer than the file", GgufBuilder().head(0, 1).number(kHuge).zeros(100).bytes(), "a metadata key"},
      {"key one byte too long", GgufBuilder().head(0, 1).number<std::uint64_t>(21).zeros(20).bytes(), "a metadata key"},
      {"empty key", GgufBuilder().head(0, 1).value<std::uint8_t>("", kU8, 1).bytes(), "1 to 65535 bytes"},
      {"very long key",
       GgufBuilder().head(0, 1).value<std::uint8_t>(std::string(70000, 'k'), kU8, 1).bytes(), "1 to 65535 bytes"},
      {"key is not UTF-8", GgufBuilder().head(0, 1).value<std::uint8_t>("\xff", kU8, 1).bytes(), "UTF-8"},
      {"value type 13", one_value().number<std::uint32_t>(13).zeros(8).bytes(), "type from 0 to 12"},
      {"value type of all ones", one_value().number(~0u).zeros(8).bytes(), "type from 0 to 12"},
      {"scalar cut off", one_value().number(kU64).zeros(7).bytes(), "k at byte"},
      {"boolean of 2", one_value().number(kBool).number<std::uint8_t>(2).bytes(), "boolean 2"},
      {"text longer than the file", one_value().number(kString).number(kHuge).zeros(10).bytes(), "needs 18446744073709551615"},
      {"text is not UTF-8", one_value().number(kString).text("\xc3").bytes(), "expected UTF-8"},
      {"array cut off", one_value().number(kArray).number(kI32).number<std::uint64_t>(3).zeros(11).bytes(),
       "number of elements"},
      {"array of unknown type", one_value().number(kArray).number<std::uint32_t>(99).number<std::uint64_t>(0).bytes(),
       "type from 0 to 12"},
      {"array whose size overflows",
       one_value().number(kArray).number(kU64).number<std::uint64_t>(1ull << 61).zeros(64).bytes(), "number of elements"},
      {"more texts than bytes",
       one_value().number(kArray).number(kString).number<std::uint64_t>(1000).zeros(64).bytes(), "number of elements"},
      {"text in an array too long",
       one_value().number(kArray).number(kString).number<std::uint64_t>(1).number(kHuge).zeros(8).bytes(), "needs"},
      {"boolean array with 3",
       one_value().number(kArray).number(kBool).number<std::uint64_t>(1).number<std::uint8_t>(3).bytes(), "boolean 3"},
      {"arrays in arrays without end", deep.zeros(64).bytes(), "nested more than 8 deep"},
      {"more arrays in an array than bytes",
       one_value().number(kArray).number(kArray).number<std::uint64_t>(100).zeros(64).bytes(), "number of elements"},
      {"a key twice",
       GgufBuilder().head(0, 2).value<std::uint8_t>("k", kU8, 1).value<std::uint8_t>("k", kU8, 1).bytes(),
       "\"k\" stands twice"},
      {"alignment 0", aligned(0), "general.alignment is 0"},
      {"alignment 24", aligned(24), "expected a power of two"},
      {"alignment as text", GgufBuilder().head(0, 1).text_value("general.alignment", "32").bytes(), "expected UINT32"},
      {"alignment as i32", GgufBuilder().head(0, 1).value<std::int32_t>("general.alignment", kI32, 32).bytes(),
       "expected UINT32"},
      {"part of a split model", GgufBuilder().head(0, 1).value<std::uint16_t>("split.count", kU16, 3).bytes(),
       "one of 3 parts"},
      {"tensor name too long", GgufBuilder().head(1, 0).number<std::uint64_t>(500).zeros(64).bytes(), "a tensor's name"},
      {"tensor without a name", GgufBuilder().head(1, 0).tensor("", {4}, 0, 0).align().zeros(16).bytes(), "UTF-8"},
      {"tensor name is not UTF-8", GgufBuilder().head(1, 0).tensor("\x80", {4}, 0, 0).align().zeros(16).bytes(), "UTF-8"},
      {"five dimensions", one_tensor({1, 1, 1, 1, 1}, 0, 0, 4), "5 dimensions"},
      {"dimensions of all ones",
       GgufBuilder().head(1, 0).text("t").number(~0u).zeros(64).bytes(), "4294967295 dimensions"},
      {"dimension above 2^63", one_tensor({1ull << 63}, 0, 0, 64), "less than 2^63"},
      {"product of dimensions overflows", one_tensor({1ull << 32, 1ull << 32}, 0, 0, 64), "cannot be addressed"},
      {"bytes overflow", one_tensor({1ull << 62}, 0, 0, 64), "cannot be addressed"},
      {"bytes overflow after blocks", one_tensor({1ull << 62, 2}, 2, 0, 64), "cannot be addressed"},
      {"unknown tensor type", one_tensor({32}, 77, 0, 64), "number 77"},
      {"removed tensor type", one_tensor({32}, 4, 0, 64), "number 4"},
      {"row of half a block", one_tensor({16, 2}, 2, 0, 64), "blocks of 32 per row"},
      {"row of half a K block", one_tensor({32}, 12, 0, 256), "blocks of 256 per row"},
      {"offset not aligned", one_tensor({1}, 0, 4, 64), "multiple of 32"},
      {"offset past the end", one_tensor({1}, 0, 128, 64), "cut off"},
      {"offset near 2^64", one_tensor({1}, 0, ~0ull - 31, 64), "cut off"},
      {"data cut off", good.substr(0, good.size() - 1), "cut off"},
      {"no data", GgufBuilder().head(1, 0).tensor("t", {4}, 0, 0).bytes(), "cut off"},
      {"a tensor name twice",
       GgufBuilder().head(2, 0).tensor("t", {1}, 0, 0).tensor("t", {1}, 0, 32).align().zeros(64).bytes(),
       "two tensors are named \"t\""},
      {"overlapping data",
       GgufBuilder().head(2, 0).tensor("a", {16}, 0, 0).tensor("b", {1}, 0, 32).align().zeros(64).bytes(),
       "\"a\" and \"b\" overlap"},
      {"two tensors on one place",
       GgufBuilder().head(2, 0).tensor("a", {4}, 0, 0).tensor("b", {4}, 0, 0).align().zeros(64).bytes(), "overlap"},
      {"fewer values than said", GgufBuilder().head(0, 2).text_value("k", "long enough for two").bytes(),
       "a metadata key"},
  };
}

}  // namespace

TEST_CASE("gguf: metadata of every kind") {
  const std::uint32_t version = GENERATE(2u, 3u);
  ScratchFolder folder;
  write_file(folder / "m.gguf", good_builder(version).bytes());
  const GgufFile file = GgufFile::open(folder / "m.gguf");
  CHECK(file.version() == version);
  CHECK(file.alignment() == 32);
  CHECK(file.metadata().size() == 17);
  CHECK(file.metadata()[0].key == "u8");
  CHECK(file.get<int>("u8") == 200);
  CHECK(file.get<int>("i8") == -5);
  CHECK(file.get<Index>("u16") == 60000);
  CHECK(file.get<std::int16_t>("i16") == -300);
  CHECK(file.get<Index>("u32") == 4000000000);
  CHECK(file.get<std::int32_t>("i32") == -70000);
  CHECK(file.get<std::uint64_t>("u64") == 1ull << 63);
  CHECK(file.get<Index>("i64") == -(Index{1} << 40));
  CHECK(file.get<float>("f32") == 0.5f);
  CHECK(file.get<double>("f32") == 0.5);
  CHECK(file.get<double>("f64") == 1e-300);
  CHECK(file.get<bool>("yes"));
  CHECK_FALSE(file.get<bool>("no"));
  CHECK(file.get<std::string_view>("text") == "grüße");
  CHECK(file.get_or<int>("missing", 7) == 7);
  CHECK(file.get_or<int>("u8", 7) == 200);
  CHECK_FALSE(file.has("missing"));

  const auto ints = file.array<std::int32_t>("ints");
  REQUIRE(ints.size() == 3);
  CHECK(ints[1] == -2);
  const auto bools = file.array<bool>("bools");
  REQUIRE(bools.size() == 2);
  CHECK(bools[0]);
  CHECK_FALSE(bools[1]);
  CHECK(file.strings("texts") == std::vector<std::string_view>{"a", "", "\xe4\xb8"});
  CHECK(file.find_value("nested")->count == 2);

  const auto message = [&](auto&& run) { return message_of<FormatError>(run); };
  CHECK(message([&] { file.get<int>("missing"); }).find("has no \"missing\"") != std::string::npos);
  CHECK(message([&] { file.get<int>("text"); }).find("is STRING; expected a whole number") != std::string::npos);
  CHECK(message([&] { file.get<int>("f32"); }).find("is FLOAT32") != std::string::npos);
  CHECK(message([&] { file.get<float>("u8"); }).find("expected a floating-point number") != std::string::npos);
  CHECK(message([&] { file.get<bool>("u8"); }).find("expected a boolean") != std::string::npos);
  CHECK(message([&] { file.get<std::string_view>("u8"); }).find("expected a text") != std::string::npos);
  CHECK(message([&] { file.get<std::uint32_t>("i8"); }).find("is -5; expected a number from 0") != std::string::npos);
  CHECK(message([&] { file.get<std::int64_t>("u64"); }).find("is 9223372036854775808") != std::string::npos);
  CHECK(message([&] { file.get<std::int8_t>("u8"); }).find("is 200") != std::string::npos);
  CHECK(message([&] { file.array<float>("ints"); }).find("an array of 3 INT32; expected an array of FLOAT32") !=
        std::string::npos);
  CHECK(message([&] { file.strings("u8"); }).find("is UINT8; expected an array of STRING") != std::string::npos);
  CHECK(message([&] { file.strings("nested"); }).find("expected an array of STRING") != std::string::npos);
}

TEST_CASE("gguf: tensors, outermost dimension first") {
  ScratchFolder folder;
  write_file(folder / "m.gguf", good_builder().bytes());
  const GgufFile file = GgufFile::open(folder / "m.gguf");
  REQUIRE(file.tensors().size() == 2);
  const TensorRef& m = file.tensor("m");
  CHECK(m.shape == std::vector<Index>{3, 2});
  const Matrix<float> values = m.to_matrix();
  CHECK(values(0, 0) == -2.5f);
  CHECK(values(2, 1) == 2.5f);
  CHECK(file.tensor("h").to_matrix()(0, 3) == 0.75f);
  CHECK(file.find("x") == nullptr);
  CHECK(message_of<FormatError>([&] { file.tensor("x"); }).find("has no tensor \"x\"") != std::string::npos);
}

TEST_CASE("gguf: of tensors without elements, the other dimensions may be of any size") {
  const ScratchFolder folder;
  constexpr std::uint64_t kMost = std::uint64_t{1} << 63;
  GgufBuilder builder;
  builder.head(3, 0);
  builder.tensor("wide", {kMost - 4, 0}, 0, 0).tensor("tall", {0, kMost - 4}, 0, 0).tensor("blocks", {kMost - 32, 0}, 8, 0);
  builder.align();
  write_file(folder / "file.gguf", builder.bytes());
  const GgufFile file = GgufFile::open(folder / "file.gguf");
  REQUIRE(file.tensors().size() == 3);
  for (const TensorRef& tensor : file.tensors()) {
    INFO(tensor.where());
    CHECK(tensor.elements() == 0);
    CHECK(tensor.to_matrix().size() == 0);
    float untouched = 7;
    tensor.read_f32(&untouched);
    tensor.read_rows_f32(0, 0, &untouched);
    CHECK(untouched == 7);
  }
}

TEST_CASE("gguf: another alignment, gaps, no tensors, types that are listed only") {
  ScratchFolder folder;
  GgufBuilder b;
  b.head(3, 1).value<std::uint32_t>("general.alignment", kU32, 8);
  b.tensor("k", {256}, 10, 0).tensor("f", {2}, 0, 160).tensor("none", {0, 5}, 0, 160);
  b.align(8).zeros(160).number(1.0f).number(2.0f);
  write_file(folder / "a.gguf", b.bytes());
  const GgufFile file = GgufFile::open(folder / "a.gguf");
  CHECK(file.alignment() == 8);
  CHECK(file.tensor("f").to_matrix()(0, 1) == 2.0f);
  CHECK(file.tensor("none").to_matrix().empty());
  const TensorRef& k = file.tensor("k");
  CHECK(name_of(k.type) == "Q2_K");
  CHECK(k.bytes.size() == 84);
  float out[256];
  CHECK(message_of<FormatError>([&] { k.read_f32(out); }).find("its type is Q2_K") != std::string::npos);
  write_file(folder / "n.gguf", GgufBuilder().head(0, 0).bytes());
  CHECK(GgufFile::open(folder / "n.gguf").tensors().empty());
}

TEST_CASE("gguf: every malformed file is refused with its reason") {
  ScratchFolder folder;
  const auto cases = bad_files();
  REQUIRE(cases.size() >= 40);
  for (const Case& bad : cases) {
    INFO(bad.what);
    write_file(folder / "bad.gguf", bad.content);
    const std::string message = message_of<FormatError>([&] { GgufFile::open(folder / "bad.gguf"); });
    INFO(message);
    CHECK(message.find(bad.message) != std::string::npos);
    CHECK(message.find("bad.gguf") != std::string::npos);
  }
  CHECK_THROWS_AS(GgufFile::open(folder / "none.gguf"), IoError);
}

TEST_CASE("gguf: every prefix of a file is refused") {
  ScratchFolder folder;
  const std::string good = good_builder().bytes();
  for (std::size_t size = 0; size < good.size(); ++size) {
    INFO(size);
    write_file(folder / "cut.gguf", std::string_view(good).substr(0, size));
    CHECK_THROWS_AS(GgufFile::open(folder / "cut.gguf"), FormatError);
  }
}

TEST_CASE("gguf: a flipped byte is refused or read within the file") {
  ScratchFolder folder;
  const std::string good = good_builder().bytes();
  int loaded = 0;
  for (std::size_t at = 0; at < good.size(); ++at) {
    for (const int flip : {0x01, 0x04, 0x20, 0x80, 0xFF}) {
      std::string bad = good;
      bad[at] = static_cast<char>(bad[at] ^ flip);
      write_file(folder / "flip.gguf", bad);
      try {
        const GgufFile file = GgufFile::open(folder / "flip.gguf");
        for (const TensorRef& t : file.tensors()) {
          if (t.is_readable()) CHECK(t.to_matrix().size() == t.elements());
        }
        for (const GgufValue& value : file.metadata()) {
          if (value.type == GgufType::kArray && value.element == GgufType::kString) file.strings(value.key);
        }
        ++loaded;
      } catch (const FormatError&) {
      }
    }
  }
  CHECK(loaded > 0);
}

TEST_CASE("gguf: dequantisation equals the gguf package's, bit for bit") {
  const std::filesystem::path golden = std::filesystem::path(PEFT_GOLDEN_DIR) / "checkpoint";
  const GgufFile file = GgufFile::open(golden / "types.gguf.bin");
  const GgufFile expected = GgufFile::open(golden / "types_f32.gguf.bin");
  CHECK(file.get<std::string_view>("general.architecture") == "llama");
  CHECK(file.strings("tokenizer.ggml.tokens") == std::vector<std::string_view>{"<s>", "é", "中文", ""});
  CHECK(file.array<float>("tokenizer.ggml.scores")[1] == -1.5f);
  REQUIRE(file.tensors().size() == 6);
  for (const TensorRef& tensor : file.tensors()) {
    INFO(tensor.name);
    const TensorRef& wanted = expected.tensor(tensor.name);
    REQUIRE(wanted.shape == tensor.shape);
    CHECK(name_of(tensor.type) == tensor.name);
    const Matrix<float> values = tensor.to_matrix();
    CHECK(std::memcmp(values.data(), wanted.bytes.data(), wanted.bytes.size()) == 0);
    std::vector<float> rows(static_cast<std::size_t>(2 * tensor.cols()));
    tensor.read_rows_f32(1, 2, rows.data());
    CHECK(std::memcmp(rows.data(), values.row(1), rows.size() * sizeof(float)) == 0);
  }
}
