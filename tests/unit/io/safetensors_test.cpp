// safetensors: what is read, what is written, and everything that is refused.

#include "peft/io/safetensors.hpp"

#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "peft/io/safetensors_writer.hpp"
#include "scratch.hpp"
#include "support/catch.hpp"

using namespace peft;
using namespace io_test;

namespace {

/// A file with this header and this data.
std::string file_of(const std::string& header, const std::string& data) {
  return bytes_of<std::uint64_t>(header.size()) + header + data;
}

/// Two tensors and metadata: 16 + 8 bytes of data.
const std::string kGoodHeader =
    R"({"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},)"
    R"("b":{"dtype":"F16","shape":[4],"data_offsets":[16,24]}} )";

std::string good_file() {
  std::string data;
  for (const float value : {1.0f, -2.0f, 0.5f, 3.0f}) data += bytes_of(value);
  for (const float value : {1.0f, 2.0f, -0.25f, 65504.0f}) data += bytes_of(f16(value).bits);
  return file_of(kGoodHeader, data);
}

struct Case {
  const char* what;
  std::string content;
  const char* message;  // part of the error's text
};

/// One tensor "t" with these members.
std::string tensor(const std::string& members, std::size_t data = 16) {
  return file_of("{\"t\":{" + members + "}}", std::string(data, '\0'));
}

std::vector<Case> bad_files() {
  const std::string good = good_file();
  const std::string deep = std::string(50'000, '[');
  return {
      {"empty", "", "expected at least 8"},
      {"seven bytes", good.substr(0, 7), "expected at least 8"},
      {"header length past the limit", bytes_of<std::uint64_t>(100'000'001) + "{}", "expected at most 100000000"},
      {"header length of all ones", bytes_of<std::uint64_t>(~0ull) + "{}", "expected at most 100000000"},
      {"header length past the end", bytes_of<std::uint64_t>(100) + "{}", "only 2 follow"},
      {"no header", bytes_of<std::uint64_t>(0), "expected \"{\""},
      {"header is a list", file_of("[]", ""), "expected \"{\""},
      {"header begins with a space", file_of(" {}", ""), "expected \"{\""},
      {"header is a text", file_of("\"x\"", ""), "expected \"{\""},
      {"header cut off", file_of("{\"t\":", ""), "not valid JSON"},
      {"two values", file_of("{} {}", ""), "not valid JSON"},
      {"not UTF-8 in a name", file_of("{\"\xff\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}", "0000"),
       "not valid JSON"},
      {"overlong UTF-8", file_of("{\"\xc0\xaf\":1}", ""), "not valid JSON"},
      {"zero byte in the header", file_of(std::string("{\0}", 3), ""), "not valid JSON"},
      {"deeply nested", file_of("{\"t\":" + deep, ""), "nested more than 4 deep"},
      {"nested shape", tensor(R"("dtype":"F32","shape":[[[4]]],"data_offsets":[0,16])"), "nested more than 4 deep"},
      {"a name twice",
       file_of(R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"t":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
               std::string(8, '\0')),
       "\"t\" stands twice"},
      {"a member twice", tensor(R"("dtype":"F32","dtype":"F32","shape":[4],"data_offsets":[0,16])"), "stands twice"},
      {"metadata is a list", file_of(R"({"__metadata__":[]})", ""), "__metadata__ is a list"},
      {"metadata holds a number", file_of(R"({"__metadata__":{"n":1}})", ""), "expected a string"},
      {"metadata twice", file_of(R"({"__metadata__":{},"__metadata__":{}})", ""), "stands twice"},
      {"tensor is a number", file_of(R"({"t":3})", ""), "has no \"dtype\""},
      {"tensor is null", file_of(R"({"t":null})", ""), "has no \"dtype\""},
      {"no dtype", tensor(R"("shape":[4],"data_offsets":[0,16])"), "has no \"dtype\""},
      {"no shape", tensor(R"("dtype":"F32","data_offsets":[0,16])"), "has no \"shape\""},
      {"no offsets", tensor(R"("dtype":"F32","shape":[4])"), "has no \"data_offsets\""},
      {"a fourth member", tensor(R"("dtype":"F32","shape":[4],"data_offsets":[0,16],"stride":[1])"), "\"stride\""},
      {"unknown dtype", tensor(R"("dtype":"F33","shape":[4],"data_offsets":[0,16])"), "dtype is \"F33\""},
      {"dtype of GGUF", tensor(R"("dtype":"Q4_0","shape":[32],"data_offsets":[0,18])"), "dtype is \"Q4_0\""},
      {"dtype in small letters", tensor(R"("dtype":"f32","shape":[4],"data_offsets":[0,16])"), "dtype is \"f32\""},
      {"dtype is a number", tensor(R"("dtype":32,"shape":[4],"data_offsets":[0,16])"), "dtype is a number"},
      {"shape is a number", tensor(R"("dtype":"F32","shape":4,"data_offsets":[0,16])"), "shape is a number"},
      {"negative size", tensor(R"("dtype":"F32","shape":[-4],"data_offsets":[0,16])"), "shape holds -4"},
      {"broken size", tensor(R"("dtype":"F32","shape":[4.0],"data_offsets":[0,16])"), "shape holds 4.0"},
      {"size as text", tensor(R"("dtype":"F32","shape":["4"],"data_offsets":[0,16])"), "shape holds a string"},
      {"size above 2^63", tensor(R"("dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,16])"),
       "below 2^63"},
      {"size above 2^64", tensor(R"("dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,16])"),
       "below 2^63"},
      {"number that overflows", tensor(R"("dtype":"F32","shape":[1e999],"data_offsets":[0,16])"), "not valid JSON"},
      {"product of the shape overflows",
       tensor(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,16])"), "cannot be addressed"},
      {"product overflows to the right size",
       tensor(R"("dtype":"F32","shape":[4611686018427387905,4],"data_offsets":[0,16])"), "cannot be addressed"},
      {"bytes overflow", tensor(R"("dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0])", 0),
       "cannot be addressed"},
      {"half a byte", tensor(R"("dtype":"F4","shape":[3],"data_offsets":[0,2])", 2), "no whole number of bytes"},
      {"one offset", tensor(R"("dtype":"F32","shape":[4],"data_offsets":[0])"), "a list of 1"},
      {"three offsets", tensor(R"("dtype":"F32","shape":[4],"data_offsets":[0,16,32])"), "a list of 3"},
      {"offsets are a number", tensor(R"("dtype":"F32","shape":[4],"data_offsets":16)"), "data_offsets is a number"},
      {"negative offset", tensor(R"("dtype":"F32","shape":[4],"data_offsets":[-16,0])"), "data_offsets holds -16"},
      {"offsets reversed", tensor(R"("dtype":"F32","shape":[4],"data_offsets":[16,0])"), "expected 16 for F32 [4]"},
      {"offsets too short", tensor(R"("dtype":"F32","shape":[4],"data_offsets":[0,12])", 12), "hold 12 bytes"},
      {"offsets too long", tensor(R"("dtype":"F32","shape":[4],"data_offsets":[0,20])", 20), "hold 20 bytes"},
      {"data cut off", good.substr(0, good.size() - 1), "cut off"},
      {"no data", good.substr(0, 8 + kGoodHeader.size()), "cut off"},
      {"bytes after the data", good + "x", "1 bytes follow"},
      {"data without tensors", file_of("{}", "x"), "1 bytes follow"},
      {"offset past the end", tensor(R"("dtype":"F32","shape":[4],"data_offsets":[1000,1016])"), "there is a gap"},
      {"offset far past the end",
       tensor(R"("dtype":"F32","shape":[4],"data_offsets":[9223372036854775791,9223372036854775807])"),
       "there is a gap"},
      {"gap between tensors",
       file_of(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}})",
               std::string(12, '\0')),
       "there is a gap"},
      {"gap at the start", tensor(R"("dtype":"F32","shape":[4],"data_offsets":[4,20])", 20), "there is a gap"},
      {"overlap",
       file_of(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
               std::string(8, '\0')),
       "they overlap"},
      {"two tensors on one place",
       file_of(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})",
               std::string(8, '\0')),
       "they overlap"},
  };
}

}  // namespace

TEST_CASE("safetensors: what stands in a file is found") {
  ScratchFolder folder;
  write_file(folder / "m.safetensors", good_file());
  const auto file = SafetensorsFile::open(folder / "m.safetensors");
  REQUIRE(file.tensors().size() == 2);
  CHECK(file.metadata() == SafetensorsMetadata{{"format", "pt"}});
  const TensorRef& w = file.tensor("w");
  CHECK(w.type == StoredType::kF32);
  CHECK(w.shape == std::vector<Index>{2, 2});
  CHECK(w.rows() == 2);
  CHECK(w.cols() == 2);
  const Matrix<float> values = w.to_matrix();
  CHECK(values(0, 1) == -2.0f);
  CHECK(values(1, 1) == 3.0f);
  float row[2];
  w.read_rows_f32(1, 1, row);
  CHECK(row[0] == 0.5f);
  CHECK(message_of<ShapeError>([&] { w.read_rows_f32(1, 2, row); }).find("rows 1 to 3") != std::string::npos);
  CHECK_THROWS_AS(w.read_rows_f32(-1, 1, row), ShapeError);
  CHECK_THROWS_AS(w.read_rows_f32(0, std::numeric_limits<Index>::max(), row), ShapeError);
  const TensorRef& b = file.tensor("b");
  CHECK(b.rows() == 1);
  CHECK(b.cols() == 4);
  CHECK(b.to_matrix()(0, 3) == 65504.0f);
  CHECK(file.find("c") == nullptr);
  CHECK(message_of<FormatError>([&] { file.tensor("c"); }).find("has no tensor \"c\"") != std::string::npos);
  if (b.has_view<f16>()) CHECK(static_cast<float>(b.view<f16>()(0, 2)) == -0.25f);
  CHECK_FALSE(b.has_view<float>());
  CHECK_THROWS_AS(b.view<float>(), FormatError);
}

TEST_CASE("safetensors: views outlive the file object") {
  ScratchFolder folder;
  write_file(folder / "m.safetensors", good_file());
  TensorRef w;
  {
    const auto file = SafetensorsFile::open(folder / "m.safetensors");
    w = file.tensor("w");
  }
  std::filesystem::remove(folder / "m.safetensors");
  CHECK(w.to_matrix()(0, 0) == 1.0f);
}

TEST_CASE("safetensors: types that are not floats are listed and refused by name when read") {
  ScratchFolder folder;
  write_file(folder / "i.safetensors", tensor(R"("dtype":"I64","shape":[2],"data_offsets":[0,16])"));
  const auto file = SafetensorsFile::open(folder / "i.safetensors");
  CHECK(file.tensor("t").type == StoredType::kI64);
  float out[2];
  const std::string message = message_of<FormatError>([&] { file.tensor("t").read_f32(out); });
  CHECK(message.find("its type is I64") != std::string::npos);
  CHECK(message.find("i.safetensors") != std::string::npos);
}

TEST_CASE("safetensors: empty tensors, scalars and an empty file") {
  ScratchFolder folder;
  write_file(folder / "e.safetensors",
             file_of(R"({"none":{"dtype":"F32","shape":[0,3],"data_offsets":[4,4]},)"
                     R"("one":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})",
                     bytes_of(2.5f)));
  const auto file = SafetensorsFile::open(folder / "e.safetensors");
  CHECK(file.tensor("none").to_matrix().empty());
  float value;
  file.tensor("one").read_f32(&value);
  CHECK(value == 2.5f);
  write_file(folder / "n.safetensors", file_of("{}      ", ""));
  CHECK(SafetensorsFile::open(folder / "n.safetensors").tensors().empty());
}

TEST_CASE("safetensors: every malformed file is refused with its reason") {
  ScratchFolder folder;
  const auto cases = bad_files();
  REQUIRE(cases.size() >= 40);
  for (const Case& bad : cases) {
    INFO(bad.what);
    write_file(folder / "bad.safetensors", bad.content);
    const std::string message = message_of<FormatError>([&] { SafetensorsFile::open(folder / "bad.safetensors"); });
    INFO(message);
    CHECK(message.find(bad.message) != std::string::npos);
    CHECK(message.find("bad.safetensors") != std::string::npos);
  }
}

TEST_CASE("safetensors: every prefix of a file is refused") {
  ScratchFolder folder;
  const std::string good = good_file();
  for (std::size_t size = 0; size < good.size(); ++size) {
    INFO(size);
    write_file(folder / "cut.safetensors", std::string_view(good).substr(0, size));
    CHECK_THROWS_AS(SafetensorsFile::open(folder / "cut.safetensors"), FormatError);
  }
}

TEST_CASE("safetensors: a flipped byte is refused or read within the file") {
  ScratchFolder folder;
  const std::string good = good_file();
  int loaded = 0;
  for (std::size_t at = 0; at < good.size(); ++at) {
    for (const int flip : {0x01, 0x04, 0x20, 0x80, 0xFF}) {
      std::string bad = good;
      bad[at] = static_cast<char>(bad[at] ^ flip);
      write_file(folder / "flip.safetensors", bad);
      try {
        const auto file = SafetensorsFile::open(folder / "flip.safetensors");
        for (const TensorRef& t : file.tensors()) {
          if (t.is_readable()) CHECK(t.to_matrix().size() == t.elements());
        }
        ++loaded;
      } catch (const FormatError&) {
      }
    }
  }
  CHECK(loaded > 24 * 5 - 1);  // at least the flips in the data
}

TEST_CASE("safetensors: files that cannot be mapped") {
  ScratchFolder folder;
  CHECK(message_of<IoError>([&] { SafetensorsFile::open(folder / "none.safetensors"); }).find("No such file") !=
        std::string::npos);
  CHECK(message_of<IoError>([&] { SafetensorsFile::open(folder.path()); }).find("is a folder") != std::string::npos);
  const auto pipe = folder / "pipe";
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  CHECK(message_of<IoError>([&] { SafetensorsFile::open(pipe); }).find("regular file") != std::string::npos);
}

TEST_CASE("safetensors: shards") {
  ScratchFolder folder;
  const auto one = [&](const char* file, const std::string& name, float value) {
    const TensorRef t = tensor_ref<float>(name, VectorView<const float>(&value, 1));
    write_safetensors(folder / file, std::span(&t, 1));
  };
  one("model-00001-of-00002.safetensors", "a", 1.0f);
  one("model-00002-of-00002.safetensors", "b", 2.0f);
  const auto index = folder / "model.safetensors.index.json";
  const std::string good =
      R"({"metadata":{"total_size":8},"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}})";
  write_file(index, good);

  SECTION("both are read") {
    const auto model = SafetensorsFile::open_folder(folder.path());
    REQUIRE(model.tensors().size() == 2);
    CHECK(model.tensor("a").to_matrix()(0, 0) == 1.0f);
    CHECK(model.tensor("b").to_matrix()(0, 0) == 2.0f);
    CHECK(model.metadata().at("format") == "pt");
  }
  SECTION("a folder with a single file") {
    one("model.safetensors", "whole", 3.0f);
    CHECK(SafetensorsFile::open_folder(folder.path()).tensor("whole").to_matrix()(0, 0) == 3.0f);
  }
  SECTION("a folder with neither") {
    std::filesystem::remove(index);
    CHECK(message_of<IoError>([&] { SafetensorsFile::open_folder(folder.path()); }).find("has neither") !=
          std::string::npos);
  }
  struct Bad {
    const char* what;
    std::string text;
    const char* message;
  };
  const std::vector<Bad> bad{
      {"no weight_map", R"({"metadata":{}})", "weight_map"},
      {"a list", "[]", "weight_map"},
      {"not JSON", "{", "not valid JSON"},
      {"weight_map is a list", R"({"weight_map":[]})", "weight_map"},
      {"shard is a number", R"({"weight_map":{"a":1}})", "weight_map[\"a\"] is a number"},
      {"path outside", R"({"weight_map":{"a":"../x.safetensors"}})", "a file in the same folder"},
      {"absolute path", R"({"weight_map":{"a":"/etc/passwd"}})", "a file in the same folder"},
      {"parent", R"({"weight_map":{"a":".."}})", "a file in the same folder"},
      {"zero byte", R"({"weight_map":{"a":"x\u0000y"}})", "a file in the same folder"},
      {"tensor twice", R"({"weight_map":{"a":"x","a":"x"}})", "stands twice"},
      {"a tensor that is not there",
       R"({"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors","c":"model-00001-of-00002.safetensors"}})",
       "tensor \"c\" is said to be in"},
      {"a tensor that the index does not name",
       R"({"weight_map":{"x":"model-00001-of-00002.safetensors"}})", "the index does not name it"},
      {"a tensor in another shard",
       R"({"weight_map":{"a":"model-00002-of-00002.safetensors","b":"model-00001-of-00002.safetensors"}})",
       "the index puts it into"},
  };
  for (const Bad& entry : bad) {
    INFO(entry.what);
    write_file(index, entry.text);
    const std::string message = message_of<FormatError>([&] { SafetensorsFile::open_sharded(index); });
    INFO(message);
    CHECK(message.find(entry.message) != std::string::npos);
  }
  write_file(index, R"({"weight_map":{"a":"gone.safetensors"}})");
  CHECK_THROWS_AS(SafetensorsFile::open_sharded(index), IoError);
}

TEST_CASE("safetensors: what is written is read back, bit for bit") {
  ScratchFolder folder;
  Matrix<float> w(3, 5);
  for (Index i = 0; i < w.size(); ++i) w.data()[i] = static_cast<float>(i) * 0.37f - 2.0f;
  w.data()[4] = -0.0f;
  w.data()[5] = std::numeric_limits<float>::denorm_min();
  const std::vector<double> d{1.0 / 3.0, -1e300};
  std::vector<bf16> h;
  for (int i = 0; i < 7; ++i) h.push_back(bf16(static_cast<float>(i) / 3.0f));
  const std::vector<TensorRef> tensors{
      tensor_ref<float>("z/é \"\\\n", std::as_const(w).view()),
      tensor_ref<double>("d", VectorView<const double>(d.data(), 2)),
      tensor_ref<bf16>("h", VectorView<const bf16>(h.data(), 7)),
      {"scalar", StoredType::kI64, {}, std::as_bytes(std::span("\1\0\0\0\0\0\0", 8)), nullptr},
      {"none", StoredType::kF16, {4, 0}, {}, nullptr},
  };
  write_safetensors(folder / "w.safetensors", tensors, {{"format", "pt"}, {"note", "ü\t"}});
  const auto file = SafetensorsFile::open(folder / "w.safetensors");
  REQUIRE(file.tensors().size() == tensors.size());
  CHECK(file.metadata() == SafetensorsMetadata{{"format", "pt"}, {"note", "ü\t"}});
  for (const TensorRef& tensor : tensors) {
    const TensorRef& found = file.tensor(tensor.name);
    CHECK(found.type == tensor.type);
    CHECK(found.shape == tensor.shape);
    CHECK(text_of(found.bytes) == text_of(tensor.bytes));
    // A multiple of 8 in front and the widest types first: everything can be viewed in place.
    CHECK(reinterpret_cast<std::uintptr_t>(found.bytes.data()) % static_cast<unsigned>(info_of(found.type).block_bytes) ==
          0);
  }
  CHECK(file.tensors()[0].name == "scalar");
  CHECK(names_in(folder.path()).size() == 1);
}

TEST_CASE("safetensors: tensors that are made in their turn give the same file as those that stand in memory") {
  ScratchFolder folder;
  const float a[] = {1.5f, -2.0f, 3.0f};
  const double b[] = {0.25};
  const std::vector<TensorRef> tensors{tensor_ref<float>("a", VectorView<const float>(a, 3)),
                                       tensor_ref<double>("b", VectorView<const double>(b, 1))};
  write_safetensors(folder / "whole", tensors);
  std::vector<DeferredTensor> deferred;
  int under_way = 0;
  for (const TensorRef& tensor : tensors) {
    deferred.push_back({tensor.name, tensor.type, tensor.shape, [&under_way, &tensor] {
                          ++under_way;
                          return tensor.bytes;
                        }});
  }
  AtomicFile file(folder / "deferred");
  write_safetensors(file.writer(), std::span<const DeferredTensor>(deferred));
  file.commit();
  CHECK(under_way == 2);
  CHECK(read_file(folder / "deferred") == read_file(folder / "whole"));

  deferred[0].shape = {4};  // 12 bytes come, 16 were announced
  AtomicFile wrong(folder / "wrong");
  CHECK(message_of<ShapeError>([&] {
          write_safetensors(wrong.writer(), std::span<const DeferredTensor>(deferred));
        }).find("12 bytes; expected 16") != std::string::npos);
  deferred[0].shape = {-1};
  CHECK_THROWS_AS(write_safetensors(wrong.writer(), std::span<const DeferredTensor>(deferred)), ShapeError);
}

TEST_CASE("safetensors: what cannot be written is refused before anything is") {
  ScratchFolder folder;
  const auto target = folder / "w.safetensors";
  write_file(target, "old");
  const float values[4] = {};
  const auto bytes = std::as_bytes(std::span(values));
  const auto refuses = [&](const std::vector<TensorRef>& tensors, const SafetensorsMetadata& metadata,
                           const char* expected) {
    const std::string message = message_of<Error>([&] { write_safetensors(target, tensors, metadata); });
    INFO(message);
    CHECK(message.find(expected) != std::string::npos);
    CHECK(read_file(target) == "old");
    CHECK(names_in(folder.path()).size() == 1);
  };
  refuses({{"a", StoredType::kF32, {4}, bytes, nullptr}, {"a", StoredType::kF16, {8}, bytes, nullptr}}, {},
          "two tensors are named \"a\"");
  refuses({{"\xff", StoredType::kF32, {4}, bytes, nullptr}}, {}, "expected UTF-8");
  refuses({{"__metadata__", StoredType::kF32, {4}, bytes, nullptr}}, {}, "__metadata__");
  refuses({{"a", StoredType::kF32, {5}, bytes, nullptr}}, {}, "expected 20 for F32 [5]");
  refuses({{"a", StoredType::kF32, {-4}, bytes, nullptr}}, {}, "16 bytes");
  refuses({{"a", StoredType::kQ8_0, {32}, bytes, nullptr}}, {}, "safetensors does not know");
  refuses({{"a", StoredType::kF32, {4}, bytes, nullptr}}, {{"k", "\xff"}}, "not UTF-8");
  const MatrixView<const float> gaps(values, 2, 1, 2);
  CHECK_THROWS_AS(tensor_ref<float>("g", gaps), ShapeError);
}

TEST_CASE("dequantise: f16 and bf16, all values") {
  std::vector<std::uint16_t> bits(65536);
  std::iota(bits.begin(), bits.end(), std::uint16_t{0});
  std::vector<float> out(65536);
  dequantize(StoredType::kF16, reinterpret_cast<const std::byte*>(bits.data()), 65536, out.data());
  int wrong = 0;
  for (std::size_t i = 0; i < bits.size(); ++i) {
    f16 half;
    half.bits = bits[i];
    wrong += std::bit_cast<std::uint32_t>(out[i]) != std::bit_cast<std::uint32_t>(static_cast<float>(half));
  }
  CHECK(wrong == 0);
  dequantize(StoredType::kBF16, reinterpret_cast<const std::byte*>(bits.data()), 65536, out.data());
  for (std::size_t i = 0; i < bits.size(); ++i) wrong += std::bit_cast<std::uint32_t>(out[i]) != std::uint32_t{bits[i]} << 16;
  CHECK(wrong == 0);
}

TEST_CASE("text: UTF-8 and what error messages show") {
  for (const char* good : {"", "a", "é", "中", "😀", "\xed\x9f\xbf", "\xf4\x8f\xbf\xbf"}) CHECK(is_utf8(good));
  for (const char* bad : {"\x80", "\xc0\xaf", "\xc1\xbf", "\xe0\x80\xaf", "\xed\xa0\x80", "\xf0\x80\x80\xaf",
                          "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff", "\xe4\xb8", "a\xc3", "\xe4\x28\xad"}) {
    CHECK_FALSE(is_utf8(bad));
  }
  CHECK(quote_text("a\nb") == "\"a\\x0ab\"");
  CHECK(quote_text("é") == "\"é\"");
  CHECK(quote_text("\xff") == "\"\\xff\"");
  const std::string cut = quote_text(std::string(119, 'x') + "中中中");
  CHECK(is_utf8(cut));
  CHECK(cut.find("…") != std::string::npos);
  CHECK(quote_text(std::string(1000, '\xff')).size() < 600);
}
